/* Types of the native engine. Every array is row-major; sizes are in elements; `float` is float32. */
#ifndef ENGINE_H
#define ENGINE_H

#include <stdint.h>

enum { PANEL = 64 };                   /* columns of a weight that lie together */
enum { FLOAT32 = 0, BFLOAT16 = 1 };    /* the dtypes of weights, keys and values; sums are float32 in both */
enum { CHUNK = 64 };                   /* tokens of a text that are run at once */
enum { NORMED_RESIDUAL = 1, RAW_HIDDEN = 2 }; /* flags of an EAGLE-3 head: see `Model` */
enum { BLOCK = 512 };                  /* entries of the vocabulary that a draw looks at together; a multiple of 64 */

/* y = x W^T. W [n, k] lies in panels of 64 rows of W: [n / 64][k][64], in bfloat16 [n / 64][k / 2][64][2].
   Both n and k are padded to multiples of 64, with zeros. */
typedef struct {
    int64_t n, k;
    const void *panels;
    const float *bias; /* [n], or NULL */
} Linear;

/* One decoder layer. The rows of gate_up are those of `gate_proj`, padded to 64, then those of `up_proj`. */
typedef struct {
    const float *norm1; /* [hidden], or NULL: EAGLE's layer has no first norm */
    const float *norm_hidden; /* [hidden] of EAGLE-3's layer, whose attention reads [norm1(embedding); norm_hidden(x)]; else NULL */
    const float *norm2; /* [hidden] */
    Linear qkv, o, gate_up, down;
} Layer;

/* A LLaMA, or an EAGLE head: then `fc.n` > 0 and a row is fc([embedding of its token; feature]). Or an EAGLE-3 head, whose layer has
   a `norm_hidden`: a row is its feature, attention reads its embedding, too. Its flags: NORMED_RESIDUAL: the row goes on as its norm;
   RAW_HIDDEN: what is given as `hidden` is before the final norm. */
typedef struct {
    int64_t hidden, heads, kv_heads, head_dim, intermediate, n_layers, vocab, dtype;
    float eps;
    int32_t flags;
    const Layer *layers;
    const float *final_norm; /* [hidden], or NULL */
    const void *embedding;   /* [vocab, hidden] in `dtype` */
    Linear fc;
    const float *cos, *sin;  /* [positions, head_dim] */
} Model;

/* Keys and values. Those of `length` committed tokens lie as weights do, so that attention is two products:
   keys [layer][kv_head][capacity / 64][head_dim][64], values [layer][kv_head][head_dim / 64][capacity][64], each in pairs in
   bfloat16 as in `Linear`. Those of rows that were run but not committed wait apart, in order of running. */
typedef struct {
    int64_t capacity, length;         /* tokens; capacity is a multiple of 64 */
    void *keys, *values;
    int64_t most_waiting, n_waiting;  /* rows; most_waiting is a multiple of 64 */
    int32_t *parents;                 /* [most_waiting]: the waiting row that each hangs on, or -1: the last committed token */
    void *waiting_keys;               /* [layer][kv_head][most_waiting / 64][head_dim][64], as keys */
    float *key_rows, *value_rows;     /* [layer][most_waiting][kv_heads * head_dim], rounded to the dtype */
} Cache;

/* What one call computes. Rows are tokens; each hangs on a waiting row of this or an earlier call, or on the text. */
typedef struct {
    int64_t n;               /* rows */
    const int32_t *ids;      /* [n] */
    const int32_t *parents;  /* [n]; a text has none: NULL */
    const float *features;   /* [n, hidden], of an EAGLE head; else NULL */
    float *hidden;           /* out [n, hidden]: after the final norm, if there is one; but see RAW_HIDDEN */
    const Linear *lm_head;   /* NULL: no logits are asked for */
    float *logits;           /* out [n_logits, lm_head.n]: of the last n_logits rows */
    int64_t n_logits, threads;
    float *taps;             /* out, or NULL: what every operator of every layer gave; see `tap` */
    const int32_t *states;   /* [n_states]: hidden states that are kept; i: what layer i is given, n_layers: what `hidden` gets */
    int64_t n_states;
    float *state_rows;       /* out [n, n_states, hidden] */
} Rows;

/* kernels.c */
int64_t act_bytes(int64_t dtype);
void to_act(const float *x, void *a, int64_t size, int64_t padded, int64_t dtype);
void round_row(float *x, int64_t size, int64_t dtype);
void matmul(const void *a, int64_t lda, const void *panels, int64_t n_panels, int64_t k, float *c, int64_t ldc, int64_t rows,
            int add, int64_t dtype, const void *after);
int64_t weight_bytes(int64_t dtype);
void to_weights(const float *x, void *w, int64_t size, int64_t dtype);
void weighted_sum(const void *w, int64_t ldw, const void *values, int64_t places, float *out, int64_t ldo, int64_t lines,
                  int64_t dtype);
void weighted_pair(const void *w, const float *v0, const float *v1, float *out, int64_t size, int64_t dtype);
void rms_norm(const float *x, const float *weight, float *y, int64_t size, float eps);
void silu_times(const float *gate, const float *up, float *y, int64_t size);
void softmax_row(float *scores, int64_t length, int64_t padded, float scale, float *total);
void best_of_row(const float *logits, int64_t vocab, int64_t k, int64_t *tokens, float *logp);
void draw_from_row(const float *logits, int64_t vocab, int64_t k, float scale, const double *u, int64_t *tokens, double *sums);
void law_of_row(const float *logits, int64_t vocab, float scale, double *law);
double read_all(const void *from, int64_t bytes);
double peak_operations(int64_t rounds);

/* threads.c */
typedef void (*Work)(void *what, int64_t thread, int64_t threads);
void on_threads(Work work, void *what, int64_t threads);
void meet(int64_t threads); /* every thread of a work waits here for the others */

#endif
