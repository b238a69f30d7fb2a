/* Kernels: products, norms, softmax. Each row's numbers are summed in one order that the number of rows does not change.

   One product of a row and a column of the weights is one chain of multiply-adds over k, in the order of k. Lanes of a vector are
   different columns, and rows of a block are different rows, so neither mixes sums. In bfloat16 a step of the chain adds a pair:
   first the product of the odd place, then that of the even place, as AVX-512's instruction does. Products of bfloat16 are exact
   in float32, so AVX-512 with and without that instruction, AVX2 and the portable path give the same sums (but for denormals). AMX sums
   otherwise: it is a path whose bits are its own. */
#include <math.h>
#include <string.h>

#include "engine.h"

#define INLINE static inline __attribute__((always_inline))

#if defined(NE_PATH_AMX) || defined(NE_PATH_AVX512_BF16)
#define PAIRS 1 /* activations are kept in bfloat16, for an instruction that adds two products */
#else
#define PAIRS 0 /* activations are kept in float32, rounded to bfloat16 */
#endif

#if defined(NE_PATH_AMX) || defined(NE_PATH_AVX512_BF16) || defined(NE_PATH_AVX512)
enum { BYTES = 64, MOST = 6 };
#elif defined(NE_PATH_AVX2)
enum { BYTES = 32, MOST = 3 };
#else
enum { BYTES = 16, MOST = 3 };
#endif
enum { LANES = BYTES / 4, VECTORS = 4, WIDE = LANES * VECTORS }; /* columns that a block of rows sums at once */

typedef float V __attribute__((vector_size(BYTES)));
typedef int32_t I __attribute__((vector_size(BYTES)));
typedef uint32_t U __attribute__((vector_size(BYTES)));
typedef uint16_t H __attribute__((vector_size(BYTES / 2)));
typedef float LooseV __attribute__((vector_size(BYTES), aligned(4), may_alias));
typedef uint32_t LooseU __attribute__((vector_size(BYTES), aligned(4), may_alias));
typedef uint16_t LooseH __attribute__((vector_size(BYTES / 2), aligned(2), may_alias));

INLINE V load(const float *p) { return *(const LooseV *)p; }
INLINE void store(float *p, V v) { *(LooseV *)p = v; }
INLINE V all(float x) { return x - (V){0}; }

#if defined(__AVX512F__)
#include <immintrin.h>
INLINE V larger(V a, V b) { return (V)_mm512_max_ps((__m512)a, (__m512)b); }
INLINE V smaller(V a, V b) { return (V)_mm512_min_ps((__m512)a, (__m512)b); }
#elif defined(__AVX2__)
#include <immintrin.h>
INLINE V larger(V a, V b) { return (V)_mm256_max_ps((__m256)a, (__m256)b); }
INLINE V smaller(V a, V b) { return (V)_mm256_min_ps((__m256)a, (__m256)b); }
#else
INLINE V either(I which, V a, V b) { return (V)(((I)a & which) | ((I)b & ~which)); }
INLINE V larger(V a, V b) { return either(a > b, a, b); }
INLINE V smaller(V a, V b) { return either(a < b, a, b); }
#endif

/* ------------------------------------------------------------------ rounding */

/* float32 bits -> the nearest bfloat16 in the upper half, ties to even. */
INLINE U rounded(U bits) { return (bits + 0x7fff + ((bits >> 16) & 1)) & 0xffff0000u; }

INLINE uint32_t bits_of(float x)
{
    uint32_t bits;
    memcpy(&bits, &x, 4);
    return bits;
}

INLINE float float_of(uint32_t bits)
{
    float x;
    memcpy(&x, &bits, 4);
    return x;
}

/* x [size] in place; size need not be a multiple of anything. */
void round_row(float *x, int64_t size, int64_t dtype)
{
    if (dtype == FLOAT32) return;
    int64_t i = 0;
    for (; i + LANES <= size; i += LANES) *(LooseU *)(x + i) = rounded(*(const LooseU *)(x + i));
    for (; i < size; i++) {
        const uint32_t bits = bits_of(x[i]);
        x[i] = float_of((bits + 0x7fff + ((bits >> 16) & 1)) & 0xffff0000u);
    }
}

/* Bytes of one number of an activation. */
int64_t act_bytes(int64_t dtype) { return PAIRS && dtype == BFLOAT16 ? 2 : 4; }

/* x [size] -> what `matmul` reads [padded]: in the dtype, zeros behind it. padded: a multiple of 32. */
void to_act(const float *x, void *a, int64_t size, int64_t padded, int64_t dtype)
{
    if (act_bytes(dtype) == 4) {
        float *out = a;
        if (out != x) memcpy(out, x, 4 * size);
        memset(out + size, 0, 4 * (padded - size));
        round_row(out, size, dtype);
        return;
    }
    uint16_t *out = a;
    int64_t i = 0;
    for (; i + LANES <= size; i += LANES)
        *(LooseH *)(out + i) = __builtin_convertvector(rounded(*(const LooseU *)(x + i)) >> 16, H);
    for (; i < size; i++) {
        const uint32_t bits = bits_of(x[i]);
        out[i] = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
    }
    memset(out + size, 0, 2 * (padded - size));
}

/* ------------------------------------------------------------------ products */

/* Fetch what the next panel needs while this one is summed: `ahead` walks through it. */
INLINE void fetch(const char **ahead, int64_t lines)
{
    for (int64_t i = 0; i < lines; i++) __builtin_prefetch(*ahead + 64 * i, 0, 2);
    *ahead += 64 * lines;
}

/* c [rows, 4 vectors] (+)= a [rows, k] w [k, 4 vectors]; w's rows are 64 apart. */
INLINE void block_f32(int rows, const float *a, int64_t lda, const float *w, int64_t k, float *c, int64_t ldc, int add,
                      const char *ahead, int64_t lines)
{
    V sum[MOST][VECTORS];
#pragma GCC unroll 8
    for (int i = 0; i < rows; i++)
#pragma GCC unroll 8
        for (int j = 0; j < VECTORS; j++) sum[i][j] = add ? load(c + i * ldc + j * LANES) : (V){0};
    for (int64_t p = 0; p < k; p++) {
        V b[VECTORS];
        if (ahead) fetch(&ahead, lines);
#pragma GCC unroll 8
        for (int j = 0; j < VECTORS; j++) b[j] = load(w + p * PANEL + j * LANES);
#pragma GCC unroll 8
        for (int i = 0; i < rows; i++) {
            const V x = all(a[i * lda + p]);
#pragma GCC unroll 8
            for (int j = 0; j < VECTORS; j++) sum[i][j] += x * b[j];
        }
    }
#pragma GCC unroll 8
    for (int i = 0; i < rows; i++)
#pragma GCC unroll 8
        for (int j = 0; j < VECTORS; j++) store(c + i * ldc + j * LANES, sum[i][j]);
}

/* The same in bfloat16: w [k / 2][64][2]. a: bfloat16 if `pairs`, else float32. */
INLINE void block_bf16(int rows, int pairs, const void *a, int64_t lda, const uint16_t *w, int64_t k, float *c, int64_t ldc, int add,
                       const char *ahead, int64_t lines)
{
    V sum[MOST][VECTORS];
#pragma GCC unroll 8
    for (int i = 0; i < rows; i++)
#pragma GCC unroll 8
        for (int j = 0; j < VECTORS; j++) sum[i][j] = add ? load(c + i * ldc + j * LANES) : (V){0};
    for (int64_t p = 0; p < k / 2; p++) {
        U b[VECTORS];
        if (ahead) fetch(&ahead, lines);
#pragma GCC unroll 8
        for (int j = 0; j < VECTORS; j++) b[j] = *(const LooseU *)(w + p * 2 * PANEL + j * 2 * LANES);
#if PAIRS
#pragma GCC unroll 8
        for (int i = 0; pairs && i < rows; i++) {
            int32_t pair;
            memcpy(&pair, (const uint16_t *)a + i * lda + 2 * p, 4);
            const __m512i x = _mm512_set1_epi32(pair);
#pragma GCC unroll 8
            for (int j = 0; j < VECTORS; j++)
                sum[i][j] = (V)_mm512_dpbf16_ps((__m512)sum[i][j], (__m512bh)x, (__m512bh)b[j]);
        }
#endif
#pragma GCC unroll 8
        for (int i = 0; !pairs && i < rows; i++) {
            const float *x = (const float *)a + i * lda + 2 * p;
            const V even = all(x[0]), odd = all(x[1]);
#pragma GCC unroll 8
            for (int j = 0; j < VECTORS; j++) {
                sum[i][j] += odd * (V)(b[j] & 0xffff0000u);
                sum[i][j] += even * (V)(b[j] << 16);
            }
        }
    }
#pragma GCC unroll 8
    for (int i = 0; i < rows; i++)
#pragma GCC unroll 8
        for (int j = 0; j < VECTORS; j++) store(c + i * ldc + j * LANES, sum[i][j]);
}

/* One panel: c [rows, 64] (+)= a [rows, k] panel [k, 64]. Meanwhile `ahead`, the next panel, is fetched if it is not NULL. */
INLINE void panel_product(int pairs, const void *a, int64_t lda, const void *panel, int64_t k, float *c, int64_t ldc,
                          int64_t rows, int add, int64_t dtype, const char *ahead)
{
    const int64_t blocks = (rows + MOST - 1) / MOST, parts = PANEL / WIDE;
    const int64_t steps = dtype == FLOAT32 ? k : k / 2; /* of a block, each of which reads 256 bytes of the panel */
    const int64_t lines = (4 + blocks * parts - 1) / (blocks * parts); /* that a step fetches: all blocks together a panel */
    int64_t done = 0, fetched = 0;
    for (int64_t block = 0; block < blocks; block++) {
        const int64_t n = (rows - done + blocks - block - 1) / (blocks - block);
        for (int64_t part = 0; part < parts; part++) {
            float *out = c + done * ldc + part * WIDE;
            const char *next = ahead && fetched < 256 * steps ? ahead + fetched : 0;
            fetched += 64 * lines * steps;
#define F32(N) block_f32(N, (const float *)a + done * lda, lda, (const float *)panel + part * WIDE, k, out, ldc, add, next, lines)
#define BF16(N)                                                                                                                 \
    block_bf16(N, pairs, (const char *)a + done * lda * (pairs ? 2 : 4), lda, (const uint16_t *)panel + 2 * part * WIDE, k, out, \
               ldc, add, next, lines)
#define CASE(N) case N: if (dtype == FLOAT32) F32(N); else BF16(N); break
            switch (n) {
                CASE(1); CASE(2); CASE(3);
#if defined(__AVX512F__)
                CASE(4); CASE(5); CASE(6);
#endif
            }
        }
        done += n;
    }
}

#ifdef NE_PATH_AMX
/* Tiles of 16 rows of 64 bytes. A product takes two tiles of rows (4, 5) and two of columns (6, 7) into four of sums (0 to 3). */
struct Tiles {
    uint8_t palette, start, unused[14];
    uint16_t bytes[16];
    uint8_t rows[16];
};

static void set_tiles(int64_t first, int64_t second)
{
    struct Tiles t = {.palette = 1};
    for (int i = 0; i < 8; i++) t.bytes[i] = 64;
    const int64_t rows[8] = {first, first, second, second, first, second, 16, 16};
    for (int i = 0; i < 8; i++) t.rows[i] = rows[i] ? rows[i] : 1;
    _tile_loadconfig(&t);
}

/* c [rows of two tiles, 32] (+)= a w, w [k / 2][64][2]; half: the second tile of rows is not there. */
INLINE void tile_product(const uint16_t *a, int64_t lda, int64_t first, const uint16_t *w, int64_t k, float *c, int64_t ldc,
                         int add, int half, const char *ahead, int64_t lines)
{
    const uint16_t *a2 = a + first * lda;
    float *c2 = c + first * ldc;
    if (add) {
        _tile_loadd(0, c, 4 * ldc);
        _tile_loadd(1, c + 16, 4 * ldc);
        if (!half) {
            _tile_loadd(2, c2, 4 * ldc);
            _tile_loadd(3, c2 + 16, 4 * ldc);
        }
    } else {
        _tile_zero(0);
        _tile_zero(1);
        _tile_zero(2);
        _tile_zero(3);
    }
    for (int64_t p = 0; p < k / 32; p++) {
        if (ahead) fetch(&ahead, lines);
        _tile_loadd(6, w + p * 32 * PANEL, 256);
        _tile_loadd(7, w + p * 32 * PANEL + 32, 256);
        _tile_loadd(4, a + 32 * p, 2 * lda);
        _tile_dpbf16ps(0, 4, 6);
        _tile_dpbf16ps(1, 4, 7);
        if (half) continue;
        _tile_loadd(5, a2 + 32 * p, 2 * lda);
        _tile_dpbf16ps(2, 5, 6);
        _tile_dpbf16ps(3, 5, 7);
    }
    _tile_stored(0, c, 4 * ldc);
    _tile_stored(1, c + 16, 4 * ldc);
    if (half) return;
    _tile_stored(2, c2, 4 * ldc);
    _tile_stored(3, c2 + 16, 4 * ldc);
}

static void tile_matmul(const uint16_t *a, int64_t lda, const char *panels, int64_t n_panels, int64_t k, float *c, int64_t ldc,
                        int64_t rows, int add, const char *after)
{
    const int64_t blocks = (rows + 31) / 32, bytes = 2 * k * PANEL;
    const int64_t lines = (64 + 2 * blocks - 1) / (2 * blocks); /* a step reads half of 64 lines */
    int64_t set = -1;
    for (int64_t n = 0; n < n_panels; n++, panels += bytes) {
        const char *following = n + 1 < n_panels ? panels + bytes : after;
        int64_t fetched = 0;
        for (int half = 0; half < 2; half++) { /* half a panel stays in the first cache for all blocks of rows */
            const uint16_t *w = (const uint16_t *)panels + 64 * half;
            int64_t done = 0;
            for (int64_t block = 0; block < blocks; block++) {
                const int64_t here = (rows - done + blocks - block - 1) / (blocks - block);
                const int64_t first = here > 16 ? (here + 1) / 2 : here, second = here - first;
                if (set != 32 * first + second) set_tiles(first, second);
                set = 32 * first + second;
                const char *next = following && fetched < bytes ? following + fetched : 0;
                fetched += 64 * lines * (k / 32);
                float *out = c + done * ldc + n * PANEL + 32 * half;
                if (second) tile_product(a + done * lda, lda, first, w, k, out, ldc, add, 0, next, lines);
                else tile_product(a + done * lda, lda, first, w, k, out, ldc, add, 1, next, lines);
                done += here;
            }
        }
    }
    _tile_release();
}
#endif

/* c [rows, 64 n_panels] (+)= a [rows, k] W^T, over panels that lie one behind the other. `after`: what is read next, or NULL. */
void matmul(const void *a, int64_t lda, const void *panels, int64_t n_panels, int64_t k, float *c, int64_t ldc, int64_t rows,
            int add, int64_t dtype, const void *after)
{
#ifdef NE_PATH_AMX
    if (dtype == BFLOAT16 && k % 32 == 0) {
        tile_matmul(a, lda, panels, n_panels, k, c, ldc, rows, add, after);
        return;
    }
#endif
    const int64_t bytes = k * PANEL * (dtype == FLOAT32 ? 4 : 2);
    for (int64_t n = 0; n < n_panels; n++) {
        const char *panel = (const char *)panels + n * bytes;
        panel_product(PAIRS, a, lda, panel, k, c + n * PANEL, ldc, rows, add, dtype, n + 1 < n_panels ? panel + bytes : after);
    }
}

/* Weights of attention: whether they are kept as activations are. AMX would add 32 positions at once, so sums over values are not its. */
#if defined(NE_PATH_AVX512_BF16)
enum { WEIGHTS_ARE_ACTS = 1 };
#elif defined(NE_PATH_AMX)
enum { WEIGHTS_ARE_ACTS = 0 }; /* float32, not rounded */
#else
enum { WEIGHTS_ARE_ACTS = 1 };
#endif

int64_t weight_bytes(int64_t dtype) { return WEIGHTS_ARE_ACTS ? act_bytes(dtype) : 4; }

/* weights [size] in place of scores -> what `weighted_sum` reads; size: a multiple of 64. */
void to_weights(const float *x, void *w, int64_t size, int64_t dtype)
{
    if (WEIGHTS_ARE_ACTS) to_act(x, w, size, size, dtype);
    else memcpy(w, x, 4 * size);
}

/* out [lines, 64] = weights [lines, places] values [places, 64], a panel of them; places: even. */
void weighted_sum(const void *w, int64_t ldw, const void *values, int64_t places, float *out, int64_t ldo, int64_t lines,
                  int64_t dtype)
{
    panel_product(PAIRS && WEIGHTS_ARE_ACTS, w, ldw, values, places, out, ldo, lines, 0, dtype, 0);
}

/* out [size] += w0 v0 + w1 v1, as a step of the chain of `weighted_sum`. w: two weights. size: a multiple of 64. */
void weighted_pair(const void *w, const float *v0, const float *v1, float *out, int64_t size, int64_t dtype)
{
#if PAIRS
    if (dtype == BFLOAT16 && WEIGHTS_ARE_ACTS) {
        int32_t pair;
        memcpy(&pair, w, 4);
        for (int64_t i = 0; i < size; i += LANES) {
            const U both = (*(const LooseU *)(v0 + i) >> 16) | *(const LooseU *)(v1 + i);
            store(out + i, (V)_mm512_dpbf16_ps((__m512)load(out + i), (__m512bh)_mm512_set1_epi32(pair), (__m512bh)both));
        }
        return;
    }
#endif
    const float *x = w;
    for (int64_t i = 0; i < size; i += LANES) {
        V sum = load(out + i);
        if (dtype == FLOAT32) {
            sum += all(x[0]) * load(v0 + i);
            sum += all(x[1]) * load(v1 + i);
        } else {
            sum += all(x[1]) * load(v1 + i);
            sum += all(x[0]) * load(v0 + i);
        }
        store(out + i, sum);
    }
}

/* ------------------------------------------------------------------ rows of their own */

/* The numbers of a vector in one order: halves are added until one is left. */
INLINE float total_of(V v)
{
    float x[LANES];
    store(x, v);
    for (int n = LANES / 2; n; n /= 2)
        for (int i = 0; i < n; i++) x[i] += x[i + n];
    return x[0];
}

/* y = x / rms(x) * weight, each [size]. */
void rms_norm(const float *x, const float *weight, float *y, int64_t size, float eps)
{
    V squares = {0};
    int64_t i = 0;
    for (; i + LANES <= size; i += LANES) squares += load(x + i) * load(x + i);
    float sum = total_of(squares);
    for (; i < size; i++) sum += x[i] * x[i];
    const float scale = 1 / sqrtf(sum / size + eps);
    for (i = 0; i < size; i++) y[i] = x[i] * scale * weight[i];
}

/* exp by 2^n times a polynomial (Cephes' expf), to about 1 ulp; below -87 it is exp(-87), about 1e-38. */
INLINE V exponential(V x)
{
    x = smaller(all(88.0f), larger(all(-87.0f), x)); /* in this order NaN stays NaN */
    const V shift = all(12582912.0f); /* 1.5 * 2^23: adding it rounds to a whole number */
    const V whole = x * all(1.44269504088896341f) + shift;
    const V n = whole - shift;
    V r = x - n * all(0.693359375f);
    r = r - n * all(-2.12194440e-4f);
    V p = all(1.9875691500e-4f);
    p = p * r + all(1.3981999507e-3f);
    p = p * r + all(8.3334519073e-3f);
    p = p * r + all(4.1665795894e-2f);
    p = p * r + all(1.6666665459e-1f);
    p = p * r + all(5.0000001201e-1f);
    p = p * r * r + r + all(1.0f);
    return p * (V)(((I)whole - (I)shift + 127) << 23);
}

/* The greatest of x [size], which is at least one. */
INLINE float greatest_of(const float *x, int64_t size)
{
    V top[4] = {all(-INFINITY), all(-INFINITY), all(-INFINITY), all(-INFINITY)};
    int64_t i = 0;
    for (; i + 4 * LANES <= size; i += 4 * LANES)
        for (int j = 0; j < 4; j++) top[j] = larger(load(x + i + j * LANES), top[j]);
    float greatest = -INFINITY, lanes[LANES];
    store(lanes, larger(larger(top[0], top[1]), larger(top[2], top[3])));
    for (int j = 0; j < LANES; j++) greatest = lanes[j] > greatest ? lanes[j] : greatest;
    for (; i < size; i++) greatest = x[i] > greatest ? x[i] : greatest;
    return greatest;
}

/* y = silu(gate) * up, each [size]; size: a multiple of 64. */
void silu_times(const float *gate, const float *up, float *y, int64_t size)
{
    for (int64_t i = 0; i < size; i += LANES) {
        const V g = load(gate + i);
        store(y + i, g / (all(1.0f) + exponential(-g)) * load(up + i));
    }
}

/* scores [padded] -> exp(scale (score - greatest)), zeros from `length` on, and their total. padded: a multiple of LANES. */
void softmax_row(float *scores, int64_t length, int64_t padded, float scale, float *total)
{
    for (int64_t i = length; i < padded; i++) scores[i] = -INFINITY;
    const float greatest = greatest_of(scores, length);
    V sum = {0};
    for (int64_t i = 0; i < padded; i += LANES) {
        const V e = exponential((load(scores + i) - all(greatest)) * all(scale));
        store(scores + i, e);
        if (i + LANES <= length) sum += e;
    }
    const int64_t whole = length / LANES * LANES;
    float rest = total_of(sum);
    for (int64_t i = whole; i < length; i++) rest += scores[i];
    for (int64_t i = length; i < padded; i++) scores[i] = 0;
    *total = rest;
}

/* The k best entries of a row of logits, ties to the lower index, and their log-probabilities (at most 0). k <= vocab. */
void best_of_row(const float *logits, int64_t vocab, int64_t k, int64_t *tokens, float *logp)
{
    const float greatest = greatest_of(logits, vocab);
    /* One pass: the sum of exponentials, and the entries that beat the least of the k best so far. */
    int64_t n = 0;
    float least = -INFINITY;
    double sum = 0;
    enum { STRETCH = 1024 };
    for (int64_t begin = 0; begin < vocab; begin += STRETCH) {
        const int64_t end = begin + STRETCH < vocab ? begin + STRETCH : vocab;
        V part[2] = {{0}, {0}};
        int64_t j = begin;
        for (; j + 2 * LANES <= end; j += 2 * LANES)
            for (int half = 0; half < 2; half++) part[half] += exponential(load(logits + j + half * LANES) - all(greatest));
        float rest = total_of(part[0] + part[1]);
        for (; j < end; j++) rest += expf(logits[j] - greatest);
        sum += rest;
        if (n == k && !(greatest_of(logits + begin, end - begin) > least)) continue;
        for (int64_t t = begin; t < end; t++) {
            if (n == k && !(logits[t] > least)) continue;
            int64_t place = n < k ? n++ : k - 1;
            for (; place > 0 && logp[place - 1] < logits[t]; place--) {
                logp[place] = logp[place - 1];
                tokens[place] = tokens[place - 1];
            }
            logp[place] = logits[t];
            tokens[place] = t;
            if (n == k) least = logp[k - 1];
        }
    }
    const float log_sum = (float)log(sum);
    for (int64_t j = 0; j < k; j++) {
        const float p = logp[j] - greatest - log_sum;
        logp[j] = p < 0 ? p : 0;
    }
}

/* ------------------------------------------------------------------ drawing */

typedef double D __attribute__((vector_size(BYTES)));
typedef float HalfV __attribute__((vector_size(BYTES / 2)));

/* Weights exp(scale (x - greatest)) of x [size] -> their sum, and they themselves in `weights` [size, to whole vectors], if it is not
   NULL. Exponentials are float32, sums are not. A weight under exp(-87) is 0, and so is that of NaN. */
static double weigh(const float *x, int64_t size, float greatest, float scale, double *weights)
{
    D sum[2] = {{0}, {0}};
    for (int64_t i = 0; i < size; i += LANES) {
        V here = all(-INFINITY);
        if (i + LANES <= size) here = load(x + i);
        else memcpy(&here, x + i, 4 * (size - i));
        const V place = (here - all(greatest)) * all(scale);
        const V weight = (V)((I)exponential(place) & (place >= all(-87.0f)));
        HalfV half[2];
        memcpy(half, &weight, BYTES);
        for (int h = 0; h < 2; h++) {
            const D wide = __builtin_convertvector(half[h], D);
            sum[h] += wide;
            if (weights) memcpy(weights + i + h * LANES / 2, &wide, BYTES);
        }
    }
    double total = 0;
    for (int i = 0; i < LANES / 2; i++) total += sum[0][i] + sum[1][i];
    return total;
}

/* The place among masses [n], laid end to end, whose own holds `at`, and where that begins. Beyond the end by rounding: the last
   that has any mass. At least one has. */
static int64_t holder(const double *masses, int64_t n, double at, double *begin)
{
    int64_t found = 0;
    double end = 0;
    for (int64_t i = 0; i < n; i++) {
        if (!(masses[i] > 0)) continue;
        found = i;
        *begin = end;
        end += masses[i];
        if (at < end) break;
    }
    return found;
}

/* k tokens drawn from softmax(scale logits), none twice: the j-th is the one whose interval of what is left holds u[j]; -1 from where on
   nothing is left. By the block and the token in it: `sums`, room for the mass of each BLOCK of the vocabulary. */
void draw_from_row(const float *logits, int64_t vocab, int64_t k, float scale, const double *u, int64_t *tokens, double *sums)
{
    const float greatest = greatest_of(logits, vocab);
    const int64_t n = (vocab + BLOCK - 1) / BLOCK;
    for (int64_t b = 0; b < n; b++)
        sums[b] = weigh(logits + b * BLOCK, b + 1 < n ? BLOCK : vocab - b * BLOCK, greatest, scale, 0);
    for (int64_t j = 0; j < k; j++) {
        double own[BLOCK], total = 0, begin = 0, unused;
        for (int64_t b = 0; b < n; b++) total += sums[b];
        tokens[j] = -1;
        if (!(total > 0)) continue;
        const double at = u[j] * total;
        const int64_t block = holder(sums, n, at, &begin), first = block * BLOCK;
        const int64_t size = first + BLOCK <= vocab ? BLOCK : vocab - first;
        weigh(logits + first, size, greatest, scale, own);
        for (int64_t i = 0; i < j; i++)
            if (tokens[i] >= first && tokens[i] < first + size) own[tokens[i] - first] = 0;
        const int64_t place = holder(own, size, at - begin, &unused);
        tokens[j] = first + place;
        own[place] = 0;
        sums[block] = 0;
        for (int64_t i = 0; i < size; i++) sums[block] += own[i];
    }
}

/* The law that `draw_from_row` draws from: law [vocab], which sums to 1; all zeros where no weight is finite and over 0. */
void law_of_row(const float *logits, int64_t vocab, float scale, double *law)
{
    const float greatest = greatest_of(logits, vocab);
    double total = 0, own[BLOCK];
    for (int64_t b = 0; b < vocab; b += BLOCK) {
        const int64_t size = b + BLOCK <= vocab ? BLOCK : vocab - b;
        total += weigh(logits + b, size, greatest, scale, own);
        memcpy(law + b, own, 8 * size);
    }
    const double share = total > 0 ? 1 / total : 0;
    for (int64_t i = 0; i < vocab; i++) law[i] *= share;
}

/* Read memory as a forward reads weights: for measuring how fast that can be. bytes: a multiple of 256. */
double read_all(const void *from, int64_t bytes)
{
    U sum[4] = {{0}, {0}, {0}, {0}};
    for (int64_t i = 0; i < bytes; i += 256) {
        const char *here = (const char *)from + i, *ahead = here + 8192;
        fetch(&ahead, 4);
        for (int j = 0; j < 256 / BYTES; j++) sum[j % 4] ^= *(const LooseU *)(here + j * BYTES);
    }
    U x = sum[0] ^ sum[1] ^ sum[2] ^ sum[3];
    double out = 0;
    for (int i = 0; i < LANES; i++) out += x[i];
    return out;
}

/* Multiply-adds of float32 from registers alone: how fast these can be at best. -> operations that were done. */
double peak_operations(int64_t rounds)
{
    enum { CHAINS = 10 }; /* enough to hide the latency, few enough for registers */
    V sum[CHAINS];
#pragma GCC unroll 16
    for (int i = 0; i < CHAINS; i++) sum[i] = all((float)i);
    V x = all(0.999f), y = all(1e-3f);
    for (int64_t r = 0; r < rounds; r++) {
#pragma GCC unroll 16
        for (int i = 0; i < CHAINS; i++) sum[i] = sum[i] * x + y;
        __asm__ volatile("" : "+m"(rounds)); /* or the compiler might do it in one go */
    }
    V total = {0};
#pragma GCC unroll 16
    for (int i = 0; i < CHAINS; i++) total += sum[i];
    volatile float sink = total_of(total);
    (void)sink;
    return 2.0 * CHAINS * LANES * rounds;
}
