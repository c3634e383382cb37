//! Intel's Advanced Matrix Extensions, on Linux. The intrinsics are not stable, so this is assembly.
//!
//! Registers of tiles keep their values from one `asm!` to the next: the compiler never uses them, and a [`super::Session`] is one thread's.

use std::arch::asm;
use std::arch::x86_64::__cpuid_count;
use std::sync::LazyLock;

use super::{Left, Right, SIDE, Target};

/// Linux gives a process the registers' state only if it asks (`arch_prctl(2)`).
const ARCH_REQ_XCOMP_PERM: libc::c_long = 0x1023;
const XFEATURE_XTILEDATA: libc::c_long = 18;

/// Whether this process may use the unit.
pub(super) fn allowed() -> bool {
    static ALLOWED: LazyLock<bool> = LazyLock::new(|| {
        // Leaf 7: bit 24 of EDX is AMX-TILE, bit 22 AMX-BF16.
        let leaf = if __cpuid_count(0, 0).eax >= 7 { __cpuid_count(7, 0).edx } else { 0 };
        // What surrounds the products is compiled for AVX-512, which every processor with AMX has.
        let vectors = is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512dq")
            && is_x86_feature_detected!("avx512bw")
            && is_x86_feature_detected!("avx512bf16");
        let has_it = vectors && leaf >> 24 & 1 == 1 && leaf >> 22 & 1 == 1;
        // SAFETY: this system call changes nothing but the permission.
        has_it && unsafe { libc::syscall(libc::SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA) } == 0
    });
    *ALLOWED
}

/// Bytes from one row of a packed tile to the next.
const LINE: usize = 64;

/// The operand of LDTILECFG: palette 1, eight tiles of 16 rows of 64 bytes.
#[repr(C, align(64))]
struct Config([u8; 64]);

static CONFIG: Config = {
    let mut bytes = [0; 64];
    bytes[0] = 1;
    let mut tile = 0;
    while tile < 8 {
        bytes[16 + 2 * tile] = 64;
        bytes[48 + tile] = SIDE as u8;
        tile += 1;
    }
    Config(bytes)
};

/// # Safety
/// The unit must be [`allowed`].
pub(super) unsafe fn configure() {
    unsafe { asm!("ldtilecfg [{}]", in(reg) &raw const CONFIG, options(nostack, readonly, preserves_flags)) };
}

/// # Safety
/// As [`configure`].
pub(super) unsafe fn release() {
    unsafe { asm!("tilerelease", options(nostack, nomem, preserves_flags)) };
}

/// # Safety
/// As [`super::Session::multiply`], after [`configure`].
pub(super) unsafe fn multiply(left: Left<'_>, right: Right, add: bool, sums: Target) {
    let Target { first, stride, below, beside } = sums;
    unsafe {
        if let (Some(next_rows), Some(next_columns)) = (left.second, right.second) {
            let tiles = [first, first.add(beside), first.add(below), first.add(below + beside)];
            return four_tiles(left, next_rows, right.first, next_columns, add, tiles, stride);
        }
        for (i, rows) in [Some(0), left.second].into_iter().enumerate() {
            for (j, columns) in [Some(0), right.second].into_iter().enumerate() {
                let (Some(rows), Some(columns)) = (rows, columns) else { continue };
                one_tile(left, rows, right.first.add(columns), add, first.add(i * below + j * beside), stride);
            }
        }
    }
}

/// # Safety
/// As [`multiply`].
unsafe fn four_tiles(
    left: Left<'_>,
    next_rows: usize,
    right: *const u16,
    next_columns: usize,
    add: bool,
    sums: [*mut f32; 4],
    stride: usize,
) {
    unsafe {
        if add {
            asm!(
                "tileloadd tmm0, [{a} + {stride}]",
                "tileloadd tmm1, [{b} + {stride}]",
                "tileloadd tmm2, [{c} + {stride}]",
                "tileloadd tmm3, [{d} + {stride}]",
                a = in(reg) sums[0], b = in(reg) sums[1], c = in(reg) sums[2], d = in(reg) sums[3],
                stride = in(reg) 4 * stride,
                options(nostack, readonly, preserves_flags),
            );
        } else {
            asm!(
                "tilezero tmm0",
                "tilezero tmm1",
                "tilezero tmm2",
                "tilezero tmm3",
                options(nostack, nomem, preserves_flags)
            );
        }
        let mut right = [right, right.add(next_columns)];
        for &run in left.runs {
            let above = left.first.wrapping_add(run);
            asm!(
                "2:",
                "tileloadd tmm4, [{above} + {stride}]",
                "tileloadd tmm6, [{right} + {line}]",
                "tileloadd tmm7, [{beside} + {line}]",
                "tdpbf16ps tmm0, tmm4, tmm6",
                "tileloadd tmm5, [{below} + {stride}]",
                "tdpbf16ps tmm1, tmm4, tmm7",
                "tdpbf16ps tmm2, tmm5, tmm6",
                "tdpbf16ps tmm3, tmm5, tmm7",
                "add {above}, 64",
                "add {below}, 64",
                "add {right}, 1024",
                "add {beside}, 1024",
                "dec {steps}",
                "jnz 2b",
                above = inout(reg) above => _,
                below = inout(reg) above.wrapping_add(next_rows) => _,
                stride = in(reg) 2 * left.stride,
                right = inout(reg) right[0],
                beside = inout(reg) right[1],
                line = in(reg) LINE,
                steps = inout(reg) left.steps => _,
                options(nostack, readonly),
            );
        }
        asm!(
            "tilestored [{a} + {stride}], tmm0",
            "tilestored [{b} + {stride}], tmm1",
            "tilestored [{c} + {stride}], tmm2",
            "tilestored [{d} + {stride}], tmm3",
            a = in(reg) sums[0], b = in(reg) sums[1], c = in(reg) sums[2], d = in(reg) sums[3],
            stride = in(reg) 4 * stride,
            options(nostack, preserves_flags),
        );
    }
}

/// # Safety
/// As [`multiply`].
unsafe fn one_tile(left: Left<'_>, rows: usize, right: *const u16, add: bool, sums: *mut f32, stride: usize) {
    unsafe {
        if add {
            asm!("tileloadd tmm0, [{} + {}]", in(reg) sums, in(reg) 4 * stride, options(nostack, readonly, preserves_flags));
        } else {
            asm!("tilezero tmm0", options(nostack, nomem, preserves_flags));
        }
        let mut right = right;
        for &run in left.runs {
            asm!(
                "2:",
                "tileloadd tmm4, [{left} + {stride}]",
                "tileloadd tmm6, [{right} + {line}]",
                "tdpbf16ps tmm0, tmm4, tmm6",
                "add {left}, 64",
                "add {right}, 1024",
                "dec {steps}",
                "jnz 2b",
                left = inout(reg) left.first.wrapping_add(rows + run) => _,
                stride = in(reg) 2 * left.stride,
                right = inout(reg) right,
                line = in(reg) LINE,
                steps = inout(reg) left.steps => _,
                options(nostack, readonly),
            );
        }
        asm!("tilestored [{} + {}], tmm0", in(reg) sums, in(reg) 4 * stride, options(nostack, preserves_flags));
    }
}
