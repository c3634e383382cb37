//! Both attentions and their gradients as plain f64 loops, for the tests.

use super::*;

type Rows = Vec<Vec<f64>>;

#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Kind {
    Full,
    Linear,
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

fn transpose(a: &Rows) -> Rows {
    (0..a[0].len()).map(|k| a.iter().map(|row| row[k]).collect()).collect()
}

fn product(a: &Rows, b: &Rows) -> Rows {
    let columns = transpose(b);
    a.iter().map(|row| columns.iter().map(|column| dot(row, column)).collect()).collect()
}

fn softmax(rows: &Rows, factor: f64) -> Rows {
    let softmax = |row: &Vec<f64>| {
        let max = row.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let e: Vec<f64> = row.iter().map(|v| (v - max).exp()).collect();
        let sum: f64 = e.iter().sum();
        e.iter().map(|v| v / sum * factor).collect()
    };
    rows.iter().map(softmax).collect()
}

/// The gradient of x for y = `factor` softmax(x).
fn softmax_grad(y: &Rows, dy: &Rows, factor: f64) -> Rows {
    let grad = |(y, dy): (&Vec<f64>, &Vec<f64>)| {
        let sum = dot(y, dy) / factor;
        y.iter().zip(dy).map(|(y, dy)| y * (dy - sum)).collect()
    };
    y.iter().zip(dy).map(grad).collect()
}

/// The output and the gradients of q, k and v of one head.
fn head(kind: Kind, [q, k, v]: &[Rows; 3], dout: &Rows) -> [Rows; 4] {
    let scale = 1.0 / (q[0].len() as f64).sqrt();
    match kind {
        Kind::Full => {
            let q: Rows = q.iter().map(|row| row.iter().map(|x| x * scale).collect()).collect();
            let p = softmax(&product(&q, &transpose(k)), 1.0);
            let ds = softmax_grad(&p, &product(dout, &transpose(v)), 1.0);
            let dq = product(&ds, k).iter().map(|row| row.iter().map(|x| x * scale).collect()).collect();
            [product(&p, v), dq, product(&transpose(&ds), &q), product(&transpose(&p), dout)]
        }
        Kind::Linear => {
            let (q, k) = (softmax(q, scale), softmax(&transpose(k), 1.0));
            let (context, dcontext) = (product(&k, v), product(&transpose(&q), dout));
            let dq = softmax_grad(&q, &product(dout, &transpose(&context)), scale);
            let dk = softmax_grad(&k, &product(&dcontext, &transpose(v)), 1.0);
            [product(&q, &context), dq, transpose(&dk), product(&transpose(&k), &dcontext)]
        }
    }
}

/// The output, dqkv and dmemory.
pub(super) fn exact(kind: Kind, s: &AttentionShape, qkv: &[f64], memory: &[f64], dout: &[f64]) -> [Vec<f64>; 3] {
    let (mut out, mut dqkv) = (vec![0.0; s.output_len()], vec![0.0; s.qkv_len()]);
    let mut dmemory = vec![0.0; s.memory_len()];
    for (b, h) in (0..s.batch).flat_map(|b| (0..s.heads).map(move |h| (b, h))) {
        let of_memory = |part: usize, j: usize, d: usize| match kind {
            Kind::Full => (((part - 1) * s.heads + h) * s.memory + j) * s.head_dim + d,
            Kind::Linear => (((part - 1) * s.heads + h) * s.head_dim + d) * s.memory + j,
        };
        let stored = |part: usize| if part == QUERY { 0 } else { s.memory };
        let rows = [QUERY, KEY, VALUE].map(|part| -> Rows {
            let position = |i| qkv[s.qkv_at(b, i, part, h)..][..s.head_dim].to_vec();
            let of_memory = |j| (0..s.head_dim).map(|d| memory[of_memory(part, j, d)]).collect();
            (0..stored(part)).map(of_memory).chain((0..s.positions).map(position)).collect()
        });
        let dout: Rows = (0..s.positions).map(|i| dout[s.output_at(b, i, h)..][..s.head_dim].to_vec()).collect();
        let [y, grads @ ..] = head(kind, &rows, &dout);
        for (i, row) in y.iter().enumerate() {
            out[s.output_at(b, i, h)..][..s.head_dim].copy_from_slice(row);
        }
        for (part, rows) in [QUERY, KEY, VALUE].into_iter().zip(&grads) {
            let (of_keys, of_positions) = rows.split_at(stored(part));
            for (j, row) in of_keys.iter().enumerate() {
                row.iter().enumerate().for_each(|(d, x)| dmemory[of_memory(part, j, d)] += x);
            }
            for (i, row) in of_positions.iter().enumerate() {
                dqkv[s.qkv_at(b, i, part, h)..][..s.head_dim].copy_from_slice(row);
            }
        }
    }
    [out, dqkv, dmemory]
}
