//! f32 data as the factors of a matrix unit read them: rounded to bf16, in pairs, transposed. Each function exists for AVX-512, which every processor
//! with a matrix unit has, and, for tests, as plain loops.

use super::{SIDE, TERMS, Unit};
use crate::par::Scratch;

/// Scratch memory for bf16 values.
pub(crate) struct NarrowScratch(Scratch);

impl NarrowScratch {
    /// Its contents are whatever was there before.
    pub(crate) fn new(len: usize) -> Self {
        Self(Scratch::new(len.div_ceil(2)))
    }

    pub(crate) fn as_ptr(&self) -> *const u16 {
        self.0.as_ptr().cast()
    }

    /// Pairs of values.
    pub(crate) fn pairs(&mut self) -> &mut [f32] {
        &mut self.0
    }
}

/// Calls the version of a function that suits the unit.
macro_rules! by_unit {
    ($unit:expr, $name:ident($($arg:expr),*)) => {
        match $unit {
            // SAFETY: the caller's contract.
            Unit::Plain => unsafe { plain::$name($($arg),*) },
            #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
            // SAFETY: the unit is only constructed where these instructions exist; the rest is the caller's contract.
            Unit::Amx => unsafe { avx512::$name($($arg),*) },
        }
    };
}

/// `count` rows of `len` values, rounded; they follow each other in the source, and begin `stride` values apart in the target.
///
/// # Safety
/// All must be valid.
pub(crate) unsafe fn narrow_rows(unit: Unit, from: *const f32, len: usize, count: usize, to: *mut u16, stride: usize) {
    let (len, count) = if stride == len { (len * count, 1) } else { (len, count) };
    by_unit!(unit, narrow_rows(from, len, count, to, stride));
}

/// Pairs of lines: `to[i, j] = (lines[2 i][j], lines[2 i + 1][j])` for j below 16, zeros from `lanes` on.
///
/// # Safety
/// `lines` must point to `lanes` values each, `to` to 16 pairs for each two of them.
pub(crate) unsafe fn pair_lines(unit: Unit, lines: &[*const f32], lanes: usize, to: *mut f32) {
    by_unit!(unit, pair_lines(lines, lanes, to));
}

/// `to[j stride + i] = lines[i][j]`, rounded, for j below 16, zeros from `lanes` on.
///
/// # Safety
/// `lines` must point to `lanes` values each, `to` to 16 rows.
pub(crate) unsafe fn transpose_lines(
    unit: Unit,
    lines: &[*const f32; TERMS],
    lanes: usize,
    to: *mut u16,
    stride: usize,
) {
    by_unit!(unit, transpose_lines(lines, lanes, to, stride));
}

/// `to[16 k + r] = from[r stride + k]` for r below 16, zeros from `rows` on, and k below `len` <= 16.
///
/// # Safety
/// `from` must point to `rows` rows of `len` values, `to` to `len` lines of 16.
pub(crate) unsafe fn transpose_rows(
    unit: Unit,
    from: *const f32,
    stride: usize,
    rows: usize,
    len: usize,
    to: *mut f32,
) {
    debug_assert!(rows <= SIDE && len <= SIDE);
    by_unit!(unit, transpose_rows(from, stride, rows, len, to));
}

#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
mod avx512 {
    use std::arch::x86_64::*;

    use super::{SIDE, TERMS};

    /// The first `lanes` lanes.
    fn first(lanes: usize) -> __mmask16 {
        if lanes >= SIDE { u16::MAX } else { (1 << lanes) - 1 }
    }

    #[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
    pub(super) unsafe fn narrow_rows(from: *const f32, len: usize, count: usize, to: *mut u16, stride: usize) {
        unsafe {
            for row in 0..count {
                let (from, to) = (from.add(row * len), to.add(row * stride));
                let whole = len / TERMS * TERMS;
                for at in (0..whole).step_by(TERMS) {
                    let (low, high) = (_mm512_loadu_ps(from.add(at)), _mm512_loadu_ps(from.add(at + SIDE)));
                    _mm512_storeu_si512(to.add(at).cast(), rounded(low, high));
                }
                if whole < len {
                    let (low, high) = (first(len - whole), first((len - whole).saturating_sub(SIDE)));
                    let values = rounded(
                        _mm512_maskz_loadu_ps(low, from.add(whole)),
                        _mm512_maskz_loadu_ps(high, from.wrapping_add(whole + SIDE)),
                    );
                    let mask = u32::from(low) | u32::from(high) << SIDE;
                    _mm512_mask_storeu_epi16(to.add(whole).cast(), mask, values);
                }
            }
        }
    }

    /// Values of two vectors one after the other.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
    fn rounded(low: __m512, high: __m512) -> __m512i {
        // SAFETY: both are 64 bytes of plain data.
        unsafe { std::mem::transmute(_mm512_cvtne2ps_pbh(high, low)) }
    }

    /// Values of two lines side by side.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
    unsafe fn paired(mask: __mmask16, even: *const f32, odd: *const f32, order: __m512i) -> __m512i {
        unsafe {
            let (even, odd) = (_mm512_maskz_loadu_ps(mask, even), _mm512_maskz_loadu_ps(mask, odd));
            _mm512_permutexvar_epi16(order, rounded(even, odd))
        }
    }

    /// The order that puts values of two vectors side by side.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw")]
    fn side_by_side() -> __m512i {
        let order: [u16; TERMS] = std::array::from_fn(|i| (i / 2 + i % 2 * SIDE) as u16);
        // SAFETY: 64 bytes of plain data.
        unsafe { _mm512_loadu_si512(order.as_ptr().cast()) }
    }

    #[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
    pub(super) unsafe fn pair_lines(lines: &[*const f32], lanes: usize, to: *mut f32) {
        let (mask, order) = (first(lanes), side_by_side());
        for (i, lines) in lines.chunks_exact(2).enumerate() {
            unsafe { _mm512_storeu_si512(to.add(i * SIDE).cast(), paired(mask, lines[0], lines[1], order)) };
        }
    }

    #[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
    pub(super) unsafe fn transpose_lines(lines: &[*const f32; TERMS], lanes: usize, to: *mut u16, stride: usize) {
        let (mask, order) = (first(lanes), side_by_side());
        unsafe {
            let pairs = std::array::from_fn(|i| paired(mask, lines[2 * i], lines[2 * i + 1], order));
            for (j, row) in transposed(pairs).into_iter().enumerate() {
                _mm512_storeu_si512(to.add(j * stride).cast(), row);
            }
        }
    }

    #[target_feature(enable = "avx512f,avx512bw")]
    pub(super) unsafe fn transpose_rows(from: *const f32, stride: usize, rows: usize, len: usize, to: *mut f32) {
        let mask = first(len);
        unsafe {
            let values = std::array::from_fn(|r| {
                if r < rows {
                    _mm512_castps_si512(_mm512_maskz_loadu_ps(mask, from.add(r * stride)))
                } else {
                    _mm512_setzero_si512()
                }
            });
            for (k, line) in transposed(values).into_iter().enumerate().take(len) {
                _mm512_storeu_si512(to.add(k * SIDE).cast(), line);
            }
        }
    }

    /// Rows become columns.
    #[inline]
    #[target_feature(enable = "avx512f")]
    fn transposed(rows: [__m512i; SIDE]) -> [__m512i; SIDE] {
        // Squares of 2, within 128 bits; then of 4; then whole 128 bits.
        let mut pairs = rows;
        for i in 0..SIDE / 2 {
            pairs[2 * i] = _mm512_unpacklo_epi32(rows[2 * i], rows[2 * i + 1]);
            pairs[2 * i + 1] = _mm512_unpackhi_epi32(rows[2 * i], rows[2 * i + 1]);
        }
        // fours[4 i + k]: rows 4 i..4 i + 4 of columns 4 l + k, l being the 128 bits.
        let mut fours = pairs;
        for i in 0..SIDE / 4 {
            for k in 0..2 {
                fours[4 * i + 2 * k] = _mm512_unpacklo_epi64(pairs[4 * i + k], pairs[4 * i + 2 + k]);
                fours[4 * i + 2 * k + 1] = _mm512_unpackhi_epi64(pairs[4 * i + k], pairs[4 * i + 2 + k]);
            }
        }
        let mut columns = fours;
        for k in 0..4 {
            let [a, b, c, d] = [fours[k], fours[4 + k], fours[8 + k], fours[12 + k]];
            let (ab_low, ab_high) = (_mm512_shuffle_i32x4::<0x88>(a, b), _mm512_shuffle_i32x4::<0xdd>(a, b));
            let (cd_low, cd_high) = (_mm512_shuffle_i32x4::<0x88>(c, d), _mm512_shuffle_i32x4::<0xdd>(c, d));
            columns[k] = _mm512_shuffle_i32x4::<0x88>(ab_low, cd_low);
            columns[8 + k] = _mm512_shuffle_i32x4::<0xdd>(ab_low, cd_low);
            columns[4 + k] = _mm512_shuffle_i32x4::<0x88>(ab_high, cd_high);
            columns[12 + k] = _mm512_shuffle_i32x4::<0xdd>(ab_high, cd_high);
        }
        columns
    }
}

/// The bf16 closest to `value`, of two the even one; a NaN stays one.
pub(crate) fn narrow(value: f32) -> u16 {
    let bits = value.to_bits();
    let rounded = (bits.wrapping_add(0x7fff + (bits >> 16 & 1)) >> 16) as u16;
    if value.is_nan() { (bits >> 16) as u16 | 0x40 } else { rounded }
}

mod plain {
    use super::{SIDE, TERMS, narrow};

    pub(super) unsafe fn narrow_rows(from: *const f32, len: usize, count: usize, to: *mut u16, stride: usize) {
        for (row, i) in (0..count).flat_map(|row| (0..len).map(move |i| (row, i))) {
            unsafe { *to.add(row * stride + i) = narrow(*from.add(row * len + i)) };
        }
    }

    fn value(line: *const f32, lane: usize, lanes: usize) -> u16 {
        // SAFETY: the line has that many lanes.
        if lane < lanes { narrow(unsafe { *line.add(lane) }) } else { 0 }
    }

    pub(super) unsafe fn pair_lines(lines: &[*const f32], lanes: usize, to: *mut f32) {
        for (i, &line) in lines.iter().enumerate() {
            for j in 0..SIDE {
                unsafe { *to.cast::<u16>().add(i / 2 * TERMS + 2 * j + i % 2) = value(line, j, lanes) };
            }
        }
    }

    pub(super) unsafe fn transpose_lines(lines: &[*const f32; TERMS], lanes: usize, to: *mut u16, stride: usize) {
        for (i, &line) in lines.iter().enumerate() {
            for j in 0..SIDE {
                unsafe { *to.add(j * stride + i) = value(line, j, lanes) };
            }
        }
    }

    pub(super) unsafe fn transpose_rows(from: *const f32, stride: usize, rows: usize, len: usize, to: *mut f32) {
        for (k, r) in (0..len).flat_map(|k| (0..SIDE).map(move |r| (k, r))) {
            unsafe { *to.add(k * SIDE + r) = if r < rows { *from.add(r * stride + k) } else { 0.0 } };
        }
    }
}
