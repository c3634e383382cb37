/* What a thread of a GPU is here, and what its instructions need: included by the C that ptx.py writes, and by blocks.c, which runs it. */
#ifndef LANES_H
#define LANES_H
#include <fenv.h>
#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

enum { WARP = 32, WORDS = 16, MOST_LANES = 1024, MOST_PARAMETERS = 256 };
typedef uint32_t slot[WORDS];

struct lane {
    uint32_t tid[3], ntid[3], ctaid[3], nctaid[3];
    uint32_t index; /* of the thread in its block */
    uint32_t shared_bytes;
    uint8_t *shared;
    struct block *block;
};

struct kernel {
    const char *name;
    void (*thread)(struct lane *, const uint8_t *parameters);
    uint32_t static_shared;
    int meets; /* do threads wait for each other? */
    int parameters;
    struct { uint32_t at, bytes; } parameter[MOST_PARAMETERS];
};

/* blocks.c */
const slot *exchange(struct lane *, uint32_t mask, const uint32_t *mine, int words, int site);
void meet(struct lane *, uint32_t barrier);
uint32_t lanes_there(struct lane *);
__attribute__((noreturn)) void refuse(struct lane *, const char *why, uint64_t address);
int may_touch(struct lane *, uint64_t address, uint32_t bytes);
extern __thread uint64_t known_from, known_to; /* a range of memory that was found to be the device's */

/* Memory */
#define AT(type, pointer) (*(type *)(pointer))
static inline uint8_t *in_shared(struct lane *L, uint32_t at, uint32_t bytes) {
    if (at + bytes > L->shared_bytes) refuse(L, "shared memory ends before", at);
    if (at & (bytes - 1) & 15) refuse(L, "not aligned: shared", at);
    return L->shared + at;
}
static inline uint8_t *in_memory(struct lane *L, uint64_t at, uint32_t bytes) {
    if ((at < known_from || at + bytes > known_to) && !may_touch(L, at, bytes)) refuse(L, "no memory at", at);
    if (at & (bytes - 1) & 15) refuse(L, "not aligned:", at);
    return (uint8_t *)at;
}

/* Bits and values */
static inline float f32_of(uint32_t bits) { float value; return memcpy(&value, &bits, 4), value; }
static inline uint32_t f32_bits(float value) { uint32_t bits; return memcpy(&bits, &value, 4), bits; }
static inline double f64_of(uint64_t bits) { double value; return memcpy(&value, &bits, 8), value; }
static inline uint64_t f64_bits(double value) { uint64_t bits; return memcpy(&bits, &value, 8), bits; }
static inline float bf16_of(uint16_t bits) { return f32_of((uint32_t)bits << 16); }
static inline uint16_t bf16_bits(double value) {
    float narrow = (float)value;
    uint32_t bits = f32_bits(narrow);
    if (narrow != narrow) return 0x7fff;
    /* A double that float would round: towards odd first, so that the second rounding is the only one. */
    if (isfinite(narrow) && (double)narrow != value) {
        if (fabs((double)narrow) > fabs(value)) bits--;
        bits |= 1;
    }
    return (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
}
static inline float f16_of(uint16_t bits) { _Float16 value; return memcpy(&value, &bits, 2), (float)value; }
static inline uint16_t f16_bits(double value) {
    _Float16 narrow = (_Float16)value;
    uint16_t bits;
    return memcpy(&bits, &narrow, 2), value != value ? 0x7fff : bits;
}
static inline uint32_t tf32_bits(float value) { /* to nearest, ties away from zero */
    uint32_t bits = f32_bits(value);
    return isfinite(value) ? (bits + 0x1000) & 0xffffe000u : bits;
}
static inline float tf32_of(uint32_t bits) { return f32_of(bits & 0xffffe000u); }

#define NEAR(kind, type, least, most)                       \
    static inline type kind##_near(double value) {          \
        if (value != value) return 0;                       \
        if (value <= (double)(least)) return least;         \
        return value >= (double)(most) ? most : (type)value; \
    }
NEAR(u8, uint8_t, 0, UINT8_MAX)
NEAR(s8, int8_t, INT8_MIN, INT8_MAX)
NEAR(u16, uint16_t, 0, UINT16_MAX)
NEAR(s16, int16_t, INT16_MIN, INT16_MAX)
NEAR(u32, uint32_t, 0, UINT32_MAX)
NEAR(s32, int32_t, INT32_MIN, INT32_MAX)
NEAR(u64, uint64_t, 0, UINT64_MAX)
NEAR(s64, int64_t, INT64_MIN, INT64_MAX)

/* Arithmetic */
static inline float saturated(float value) { return value > 0 ? value < 1 ? value : 1 : 0; }
/* Rounded down, up, or towards zero. */
#define ROUNDED(name, mode)                                                                  \
    static inline float fused_##name(float a, float b, float c) {                            \
        int before = fegetround();                                                           \
        fesetround(mode);                                                                    \
        __asm__ volatile("" : "+x"(a), "+x"(b), "+x"(c));                                    \
        float value = fmaf(a, b, c);                                                         \
        __asm__ volatile("" : "+x"(value));                                                  \
        fesetround(before);                                                                  \
        return value;                                                                        \
    }                                                                                        \
    static inline float sum_##name(float a, float b) { return fused_##name(a, 1.0f, b); }     \
    static inline float difference_##name(float a, float b) { return fused_##name(a, 1.0f, -b); } \
    static inline float product_##name(float a, float b) { return fused_##name(a, b, -0.0f); }
ROUNDED(rm, FE_DOWNWARD)
ROUNDED(rp, FE_UPWARD)
ROUNDED(rz, FE_TOWARDZERO)
static inline float reciprocalf(float value) { return 1.0f / value; }
static inline double reciprocal(double value) { return 1.0 / value; }
static inline float reciprocal_rootf(float value) { return (float)(1.0 / sqrt((double)value)); }
static inline double reciprocal_root(double value) { return 1.0 / sqrt(value); }
static inline double min_of_doubles(double a, double b, int nan) {
    if (a != a || b != b) return nan ? NAN : a != a ? b : a;
    return a < b || (a == b && signbit(a)) ? a : b;
}
static inline double max_of_doubles(double a, double b, int nan) {
    if (a != a || b != b) return nan ? NAN : a != a ? b : a;
    return a > b || (a == b && signbit(b)) ? a : b;
}
static inline float min_of_floats(float a, float b, int nan) { return (float)min_of_doubles(a, b, nan); }
static inline float max_of_floats(float a, float b, int nan) { return (float)max_of_doubles(a, b, nan); }

static inline uint64_t ones(uint32_t count) { return count < 64 ? (1ull << count) - 1 : ~0ull; }
static inline uint64_t bits_of_u64(uint64_t a, uint32_t at, uint32_t count) { return (at & 255) < 64 ? a >> (at & 255) & ones(count & 255) : 0; }
static inline uint32_t bits_of_u32(uint32_t a, uint32_t at, uint32_t count) { return (uint32_t)bits_of_u64(a, at, count); }
static inline uint32_t permuted(uint32_t a, uint32_t b, uint32_t how) {
    uint64_t both = (uint64_t)b << 32 | a;
    uint32_t result = 0;
    for (int i = 0; i < 4; i++) {
        uint32_t pick = how >> (4 * i), byte = both >> (8 * (pick & 7)) & 255;
        if (pick & 8) byte = byte & 128 ? 255 : 0;
        result |= byte << (8 * i);
    }
    return result;
}

/* What lanes of a warp do together */
static inline uint32_t shuffled(struct lane *L, int from, int inside, uint8_t *there) {
    *there = (uint8_t)inside;
    return inside ? (uint32_t)from : L->index & 31;
}
#define SEGMENT                                                                               \
    uint32_t me = L->index & 31, segment = clamp >> 8 & 31, first = me & segment;            \
    int last = (int)(first | (clamp & 31 & ~segment));                                        \
    (void)first; (void)last; (void)me
static inline uint32_t shuffled_from_up(struct lane *L, uint32_t by, uint32_t clamp, uint8_t *there) {
    SEGMENT;
    int from = (int)me - (int)(by & 31);
    return shuffled(L, from, from >= last, there);
}
static inline uint32_t shuffled_from_down(struct lane *L, uint32_t by, uint32_t clamp, uint8_t *there) {
    SEGMENT;
    int from = (int)(me + (by & 31));
    return shuffled(L, from, from <= last, there);
}
static inline uint32_t shuffled_from_bfly(struct lane *L, uint32_t by, uint32_t clamp, uint8_t *there) {
    SEGMENT;
    int from = (int)(me ^ (by & 31));
    return shuffled(L, from, from <= last, there);
}
static inline uint32_t shuffled_from_idx(struct lane *L, uint32_t by, uint32_t clamp, uint8_t *there) {
    SEGMENT;
    int from = (int)(first | (by & 31 & ~segment));
    return shuffled(L, from, from <= last, there);
}

/* ldmatrix and stmatrix: of matrix i, eight by eight values of 16 bits, the rows begin where lanes 8 i to 8 i + 7 say. A lane has two values. */
static inline uint16_t *matrix_element(struct lane *L, const slot *all, int i, int half, int transposed) {
    int row = L->index % WARP / 4, column = L->index % 4 * 2 + half;
    const uint32_t *said = all[8 * i + (transposed ? column : row)];
    return (uint16_t *)(said[0] | (uint64_t)said[1] << 32) + (transposed ? row : column);
}
static inline uint32_t matrix_part(struct lane *L, const slot *all, int i, int transposed) {
    return *matrix_element(L, all, i, 0, transposed) | (uint32_t)*matrix_element(L, all, i, 1, transposed) << 16;
}
static inline void matrix_part_into(struct lane *L, const slot *all, int i, int transposed, uint32_t part) {
    for (int half = 0; half < 2; half++) *matrix_element(L, all, i, half, transposed) = part >> (16 * half);
}

/* mma: PTX ISA, "Matrix fragments for mma.m16n8k16" and the like. `all` holds a's registers, then b's. */
#define MULTIPLIED_16(kind)                                                                                                       \
    static inline void multiplied_##kind(struct lane *L, const slot *all, int k, int registers_of_a, float *d) {                 \
        int group = L->index % WARP / 4, within = L->index % 4;                                                                   \
        for (int i = 0; i < 4; i++) {                                                                                             \
            int row = group + i / 2 * 8, column = within * 2 + i % 2;                                                            \
            for (int j = 0; j < k; j++) {                                                                                         \
                int lane = j % 8 / 2, half = j % 2 * 16;                                                                          \
                uint16_t a = all[row % 8 * 4 + lane][j / 8 * 2 + row / 8] >> half;                                                \
                uint16_t b = all[column * 4 + lane][registers_of_a + j / 8] >> half;                                              \
                d[i] += kind##_of(a) * kind##_of(b);                                                                              \
            }                                                                                                                     \
        }                                                                                                                         \
    }
MULTIPLIED_16(bf16)
MULTIPLIED_16(f16)
static inline void multiplied_tf32(struct lane *L, const slot *all, int k, int registers_of_a, float *d) {
    int group = L->index % WARP / 4, within = L->index % 4;
    for (int i = 0; i < 4; i++) {
        int row = group + i / 2 * 8, column = within * 2 + i % 2;
        for (int j = 0; j < k; j++)
            d[i] += tf32_of(all[row % 8 * 4 + j % 4][j / 4 * 2 + row / 8]) * tf32_of(all[column * 4 + j % 4][registers_of_a + j / 4]);
    }
}

/* wmma: which lane has which element is the hardware's own affair. Here lane l has the elements l * n to l * n + n of the matrix in rows, n = rows *
 * columns / 32, those of 16 bits two in a register. */
enum { AS_f16, AS_bf16, AS_tf32, AS_f32 };
static inline float element(const uint32_t *part, int i, int as) {
    if (as == AS_f32) return f32_of(part[i]);
    if (as == AS_tf32) return tf32_of(part[i]);
    uint16_t bits = part[i / 2] >> (i % 2 * 16);
    return as == AS_f16 ? f16_of(bits) : bf16_of(bits);
}
static inline uint8_t *place(uint8_t *at, int e, uint32_t stride, int columns, int by_rows, int bytes) {
    uint32_t row = e / columns, column = e % columns;
    return at + (by_rows ? row * stride + column : column * stride + row) * bytes;
}
static inline void fragment_from(struct lane *L, uint32_t *part, int registers, uint8_t *at, uint32_t stride, int rows, int columns, int by_rows, int bytes) {
    int each = rows * columns / WARP, first = L->index % WARP * each;
    memset(part, 0, 4 * registers);
    for (int i = 0; i < each; i++)
        if (bytes == 2) part[i / 2] |= (uint32_t)AT(uint16_t, place(at, first + i, stride, columns, by_rows, 2)) << (i % 2 * 16);
        else part[i] = AT(uint32_t, place(at, first + i, stride, columns, by_rows, 4));
}
static inline void fragment_into(struct lane *L, const uint32_t *part, uint8_t *at, uint32_t stride, int rows, int columns, int by_rows, int bytes) {
    int each = rows * columns / WARP, first = L->index % WARP * each;
    for (int i = 0; i < each; i++)
        if (bytes == 2) AT(uint16_t, place(at, first + i, stride, columns, by_rows, 2)) = part[i / 2] >> (i % 2 * 16);
        else AT(uint32_t, place(at, first + i, stride, columns, by_rows, 4)) = part[i];
}
static inline void fragments_multiplied(struct lane *L, const slot *all, uint32_t *sums, int m, int n, int k, int registers_of_a, int of, int to) {
    int each = m * n / WARP, first = L->index % WARP * each, each_a = m * k / WARP, each_b = k * n / WARP;
    for (int i = 0; i < each; i++) {
        int row = (first + i) / n, column = (first + i) % n;
        float sum = element(sums, i, to);
        for (int j = 0; j < k; j++) {
            int a = row * k + j, b = j * n + column;
            sum += element(all[a / each_a], a % each_a, of) * element(all[b / each_b] + registers_of_a, b % each_b, of);
        }
        if (to == AS_f32) sums[i] = f32_bits(sum);
        else sums[i / 2] = i % 2 ? (sums[i / 2] & 0xffff) | (uint32_t)f16_bits(sum) << 16 : (sums[i / 2] & 0xffff0000u) | f16_bits(sum);
    }
}
#endif
