/* The forward of a LLaMA, and of EAGLE heads: rows of a tree, or a text, through all layers in one call.

   Threads share out columns of products, rows of norms and heads of attention, but never a sum. A row attends to the text before it and
   to its own path, in order of position; what other rows there are changes nothing of it. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "engine.h"

#if defined(NE_PATH_AMX) && defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

enum { QUERIES = 16 }; /* rows of one product of attention: they share what is read of keys and values */

static int64_t padded(int64_t size) { return (size + PANEL - 1) / PANEL * PANEL; }
static int64_t less(int64_t a, int64_t b) { return a < b ? a : b; }
static int64_t more(int64_t a, int64_t b) { return a > b ? a : b; }
static int64_t number_bytes(int64_t dtype) { return dtype == FLOAT32 ? 4 : 2; }

/* 0 where this process may run the engine; AMX must be asked for once. */
int ne_prepare(void)
{
#if defined(NE_PATH_AMX) && defined(__linux__)
    enum { ARCH_REQ_XCOMP_PERM = 0x1023, XFEATURE_XTILEDATA = 18 };
    return syscall(SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA) ? 1 : 0;
#else
    return 0;
#endif
}

/* ------------------------------------------------------------------ memory of a call */

/* What a call works in: one block that grows, of the thread that calls. */
static _Thread_local char *space;
static _Thread_local int64_t space_bytes, space_used;

static void *take(int64_t bytes)
{
    void *at = space ? space + space_used : 0;
    space_used += (bytes + 255) / 256 * 256;
    return at;
}

/* One forward: its sizes, and its buffers [n, ..], rows padded to 64 numbers. `act` ones are what `matmul` reads. */
typedef struct {
    const Model *m;
    Cache *cache;
    const Rows *rows;
    int64_t n, first; /* rows; waiting rows before them */
    int64_t most_path, score_width, unit; /* longest path; numbers of a row of scores; rows of one unit of attention */
    int32_t *depth, *paths; /* [waiting rows, these included]; [the same][most_path]: waiting rows from the top to itself */
    float *x, *y, *qkv, *attended, *gates;
    char *y_act, *q_act, *attended_act, *gates_act;
    char *scratch; /* [threads][scratch_bytes] of attention */
    int64_t scratch_bytes, act;
    float *tap; /* where the next tap goes */
} Call;

static int64_t group_of(const Model *m) { return m->heads / m->kv_heads; }

static void lay_out(Call *c, int64_t threads)
{
    const Model *m = c->m;
    const int64_t n = c->n, waiting = c->first + n, wide = padded(more(2 * m->hidden, m->heads * m->head_dim));
    const int64_t inner = padded(m->intermediate), qkv = padded((m->heads + 2 * m->kv_heads) * m->head_dim);
    const int64_t lines = c->unit * group_of(m);
    space_used = 0;
    c->depth = take(4 * waiting);
    c->paths = take(4 * waiting * c->most_path);
    c->x = take(4 * n * padded(m->hidden));
    c->y = take(4 * n * wide);
    c->qkv = take(4 * n * qkv);
    c->attended = take(4 * n * wide);
    c->gates = take(4 * n * 2 * inner);
    c->y_act = take(4 * n * wide);
    c->q_act = take(4 * n * wide);
    c->attended_act = take(4 * n * wide);
    c->gates_act = take(4 * n * inner);
    c->scratch_bytes = 8 * lines * c->score_width + 4 * lines * (padded(waiting) + padded(m->head_dim)) + 4 * lines +
                       8 * padded(m->head_dim);
    c->scratch_bytes = (c->scratch_bytes + 255) / 256 * 256;
    c->scratch = take(threads * c->scratch_bytes);
}

/* 0, or 1 where there is no memory. */
static int set_up(Call *c, int64_t threads)
{
    lay_out(c, threads);
    if (space_used > space_bytes) {
        free(space);
        space_bytes = 0;
        space = aligned_alloc(256, space_used);
        if (!space) return 1;
        space_bytes = space_used;
        memset(space, 0, space_bytes);
    }
    lay_out(c, threads);
    return 0;
}

/* What an operator gave, [n, size], goes behind what the ones before it gave. */
static void tap(Call *c, int64_t thread, const float *rows, int64_t stride, int64_t size)
{
    if (!c->tap || thread) return;
    for (int64_t i = 0; i < c->n; i++, c->tap += size) memcpy(c->tap, rows + i * stride, 4 * size);
}

/* ------------------------------------------------------------------ keys and values */

/* Where number `d` of the key at `place` lies, in panels of `width` numbers a key. */
static int64_t key_at(int64_t place, int64_t d, int64_t width, int64_t dtype)
{
    const int64_t panel = place / PANEL * width * PANEL, column = place % PANEL;
    return dtype == FLOAT32 ? panel + d * PANEL + column : panel + d / 2 * 2 * PANEL + 2 * column + d % 2;
}

/* Where number `d` of the value at `place` lies; panels are of 64 numbers a value. */
static int64_t value_at(int64_t place, int64_t d, int64_t capacity, int64_t dtype)
{
    const int64_t panel = d / PANEL * capacity * PANEL, column = d % PANEL;
    return dtype == FLOAT32 ? panel + place * PANEL + column : panel + place / 2 * 2 * PANEL + 2 * column + place % 2;
}

static void put(void *into, int64_t at, float x, int64_t dtype)
{
    if (dtype == FLOAT32) ((float *)into)[at] = x;
    else {
        uint32_t bits;
        memcpy(&bits, &x, 4);
        ((uint16_t *)into)[at] = bits >> 16; /* it is rounded already */
    }
}

static char *keys_of(const Model *m, const Cache *k, int64_t layer, int64_t head)
{
    return (char *)k->keys + (layer * m->kv_heads + head) * k->capacity * m->head_dim * number_bytes(m->dtype);
}

static char *values_of(const Model *m, const Cache *k, int64_t layer, int64_t head)
{
    return (char *)k->values + (layer * m->kv_heads + head) * k->capacity * padded(m->head_dim) * number_bytes(m->dtype);
}

static char *waiting_keys_of(const Model *m, const Cache *k, int64_t layer, int64_t head)
{
    return (char *)k->waiting_keys + (layer * m->kv_heads + head) * k->most_waiting * m->head_dim * number_bytes(m->dtype);
}

/* Commit the waiting rows `path` (each hangs on the one before it), in that order; the others are dropped. -> 0; 1: no room. */
int ne_commit(const Model *m, Cache *k, const int32_t *path, int64_t n)
{
    const int64_t d = m->head_dim, width = m->kv_heads * d;
    if (k->length + n > k->capacity) return 1;
    for (int64_t layer = 0; layer < m->n_layers; layer++)
        for (int64_t i = 0; i < n; i++) {
            const int64_t row = (layer * k->most_waiting + path[i]) * width, place = k->length + i;
            for (int64_t head = 0; head < m->kv_heads; head++) {
                char *keys = keys_of(m, k, layer, head), *values = values_of(m, k, layer, head);
                for (int64_t j = 0; j < d; j++) {
                    put(keys, key_at(place, j, d, m->dtype), k->key_rows[row + head * d + j], m->dtype);
                    put(values, value_at(place, j, k->capacity, m->dtype), k->value_rows[row + head * d + j], m->dtype);
                }
            }
        }
    k->length += n;
    k->n_waiting = 0;
    return 0;
}

/* ------------------------------------------------------------------ one layer's parts, each over this thread's share */

static void turn(const float *x, const float *cos, const float *sin, float *out, int64_t d)
{
    const int64_t half = d / 2;
    for (int64_t j = 0; j < half; j++) {
        out[j] = x[j] * cos[j] - x[j + half] * sin[j];
        out[j + half] = x[j + half] * cos[j + half] + x[j] * sin[j + half];
    }
}

/* Queries lie by head of keys, then by row: [kv_heads][n][group][head_dim]. */
static int64_t query_at(const Call *c, int64_t head, int64_t row, int64_t of_group)
{
    return ((head * c->n + row) * group_of(c->m) + of_group) * c->m->head_dim;
}

/* qkv [n, ..] -> queries and keys turned by their positions; keys and values wait in the cache. */
static void rotate(Call *c, int64_t layer, int64_t stride, int64_t thread, int64_t threads)
{
    const Model *m = c->m;
    Cache *k = c->cache;
    const int64_t d = m->head_dim, width = m->kv_heads * d;
    for (int64_t i = thread; i < c->n; i += threads) {
        const int64_t place = c->first + i, position = k->length + c->depth[place];
        const float *cos = m->cos + position * d, *sin = m->sin + position * d;
        float *row = c->qkv + i * stride, turned[d];
        for (int64_t h = 0; h < m->heads + m->kv_heads; h++) {
            turn(row + h * d, cos, sin, turned, d);
            memcpy(row + h * d, turned, 4 * d);
        }
        for (int64_t h = 0; h < m->heads; h++)
            to_act(row + h * d, c->q_act + query_at(c, h / group_of(m), i, h % group_of(m)) * c->act, d, d, m->dtype);
        float *keys = k->key_rows + (layer * k->most_waiting + place) * width;
        float *values = k->value_rows + (layer * k->most_waiting + place) * width;
        memcpy(keys, row + m->heads * d, 4 * width);
        memcpy(values, row + m->heads * d + width, 4 * width);
        round_row(keys, width, m->dtype);
        round_row(values, width, m->dtype);
        for (int64_t head = 0; head < m->kv_heads; head++) {
            char *panels = waiting_keys_of(m, k, layer, head);
            for (int64_t j = 0; j < d; j++) put(panels, key_at(place, j, d, m->dtype), keys[head * d + j], m->dtype);
        }
    }
}

/* The value of the last committed token: [head_dim], zeros behind it. */
static void last_value(const Model *m, const Cache *k, int64_t layer, int64_t head, float *out)
{
    const char *values = values_of(m, k, layer, head);
    for (int64_t j = 0; j < m->head_dim; j++) {
        const int64_t at = value_at(k->length - 1, j, k->capacity, m->dtype);
        if (m->dtype == FLOAT32) out[j] = ((const float *)values)[at];
        else {
            const uint32_t bits = (uint32_t)((const uint16_t *)values)[at] << 16;
            memcpy(out + j, &bits, 4);
        }
    }
}

/* Attention of the rows [from, to) with one head of keys: a unit of work. A row's scores stand in order of position, first the
   text's, then those of its own path; softmax and the weighted sum of values go over them in that order. */
static void attend(Call *c, int64_t layer, int64_t head, int64_t from, int64_t to, char *scratch)
{
    const Model *m = c->m;
    Cache *k = c->cache;
    const int64_t d = m->head_dim, wide = padded(d), group = group_of(m), lines = (to - from) * group;
    const int64_t length = k->length, waiting = c->first + c->n, all_waiting = padded(waiting), kv = m->kv_heads * d;
    const int64_t each = weight_bytes(m->dtype);
    const int64_t even = length & ~(int64_t)1; /* pairs of positions are added together: the text's last may stand alone */
    const float scale = 1 / sqrtf(d);
    float *scores = (float *)scratch, *own = scores + lines * c->score_width, *out = own + lines * all_waiting;
    float *total = out + lines * wide, *before = total + lines, *none = before + wide;
    char *weights = (char *)(none + wide);
    const char *queries = c->q_act + query_at(c, head, from, 0) * c->act;
    memset(before, 0, 8 * wide); /* `before` and `none` */

    /* scores with the text: c [lines, positions], a panel of keys after the other */
    const char *keys = keys_of(m, k, layer, head), *fresh = waiting_keys_of(m, k, layer, head);
    matmul(queries, d, keys, padded(length) / PANEL, d, scores, c->score_width, lines, 0, m->dtype, 0);
    matmul(queries, d, fresh, all_waiting / PANEL, d, own, all_waiting, lines, 0, m->dtype, 0);
    for (int64_t line = 0; line < lines; line++) {
        const int64_t row = c->first + from + line / group, n = c->depth[row] + 1, end = length + n;
        const int32_t *path = c->paths + row * c->most_path;
        float *s = scores + line * c->score_width;
        for (int64_t j = 0; j < n; j++) s[length + j] = own[line * all_waiting + path[j]];
        softmax_row(s, end, padded(end), scale, total + line);
        to_weights(s, weights + line * c->score_width * each, padded(end), m->dtype);
    }

    /* out [lines, head_dim]: weights times values, over the text's pairs, then over each row's own */
    const char *values = values_of(m, k, layer, head);
    for (int64_t j = 0; j < wide; j += PANEL)
        weighted_sum(weights, c->score_width, values + j * k->capacity * number_bytes(m->dtype), even, out + j, wide, lines,
                     m->dtype);
    if (even < length) last_value(m, k, layer, head, before);
    for (int64_t line = 0; line < lines; line++) {
        const int64_t i = from + line / group, row = c->first + i, h = head * group + line % group, n = c->depth[row] + 1;
        const int32_t *path = c->paths + row * c->most_path;
        const float *fresh_values = k->value_rows + layer * k->most_waiting * kv + head * d;
        float *o = out + line * wide, pair[2][wide];
        memset(pair, 0, sizeof pair);
        for (int64_t place = even; place < length + n; place += 2) {
            for (int64_t one = 0; one < 2; one++) {
                const int64_t j = place + one - length;
                const float *v = j < 0 ? before : j < n ? fresh_values + path[j] * kv : none;
                memcpy(pair[one], v, 4 * d);
            }
            weighted_pair(weights + (line * c->score_width + place) * each, pair[0], pair[1], o, wide, m->dtype);
        }
        float *into = c->attended + i * padded(m->heads * d) + h * d;
        for (int64_t j = 0; j < d; j++) into[j] = o[j] / total[line];
    }
}

/* The first panel of a thread's share of a linear map. */
static const char *share(const Linear *l, int64_t dtype, int64_t thread, int64_t threads)
{
    return (const char *)l->panels + l->n / PANEL * thread / threads * l->k * PANEL * number_bytes(dtype);
}

/* into [rows, ..] (+)= a W^T, this thread's columns. then: the map whose weights are read next, or NULL. */
static void add_product(Call *c, const Linear *l, const Linear *then, const char *a, float *into, int64_t ldc, int add,
                        int64_t thread, int64_t threads, int64_t rows)
{
    const int64_t n_panels = l->n / PANEL, from = n_panels * thread / threads, to = n_panels * (thread + 1) / threads;
    const int64_t dtype = c->m->dtype;
    matmul(a, l->k, share(l, dtype, thread, threads), to - from, l->k, into + from * PANEL, ldc, rows, add, dtype,
           then ? share(then, dtype, thread, threads) : 0);
}

/* y = norm(x), and that as an activation; without a weight y is x. */
static void norm(Call *c, const float *weight, int64_t thread, int64_t threads)
{
    const int64_t hidden = c->m->hidden, stride = padded(hidden);
    for (int64_t i = thread; i < c->n; i += threads) {
        float *x = c->x + i * stride, *y = c->y + i * stride;
        if (weight) rms_norm(x, weight, y, hidden, c->m->eps);
        else memcpy(y, x, 4 * hidden);
        to_act(y, c->y_act + i * stride * c->act, hidden, stride, c->m->dtype);
    }
}

/* Rows of the embedding, as float32. */
static void embed(const Model *m, int32_t token, float *out)
{
    if (m->dtype == FLOAT32) {
        memcpy(out, (const float *)m->embedding + token * m->hidden, 4 * m->hidden);
        return;
    }
    const uint16_t *from = (const uint16_t *)m->embedding + token * m->hidden;
    for (int64_t j = 0; j < m->hidden; j++) {
        const uint32_t bits = (uint32_t)from[j] << 16;
        memcpy(out + j, &bits, 4);
    }
}

/* What attention of an EAGLE-3 head reads: [norm1(embedding); norm_hidden(x)]. */
static void norm_both(Call *c, const Layer *l, int64_t thread, int64_t threads)
{
    const Model *m = c->m;
    const int64_t hidden = m->hidden, width = l->qkv.k;
    for (int64_t i = thread; i < c->n; i += threads) {
        float *x = c->x + i * padded(hidden), *both = c->y + i * width;
        embed(m, c->rows->ids[i], both);
        rms_norm(both, l->norm1, both, hidden, m->eps);
        rms_norm(x, l->norm_hidden, both + hidden, hidden, m->eps);
        if (m->flags & NORMED_RESIDUAL) memcpy(x, both + hidden, 4 * hidden);
        to_act(both, c->y_act + i * width * c->act, 2 * hidden, width, m->dtype);
    }
}

/* Keep hidden states where this one is asked for. rows: [n, ..], padded. */
static void keep_state(const Call *c, const float *rows, int64_t state, int64_t thread, int64_t threads)
{
    const Rows *r = c->rows;
    const int64_t hidden = c->m->hidden, stride = padded(hidden);
    for (int64_t j = 0; j < r->n_states; j++)
        for (int64_t i = thread; r->states[j] == state && i < c->n; i += threads)
            memcpy(r->state_rows + (i * r->n_states + j) * hidden, rows + i * stride, 4 * hidden);
}

static void run_layer(Call *c, int64_t index, int64_t thread, int64_t threads)
{
    const Model *m = c->m;
    const Layer *l = m->layers + index;
    const Linear *next = index + 1 < m->n_layers ? &l[1].qkv : c->rows->n_logits ? c->rows->lm_head : 0;
    const int64_t n = c->n, hidden = padded(m->hidden), inner = padded(m->intermediate), heads = padded(m->heads * m->head_dim);
    keep_state(c, c->x, index, thread, threads);
    if (l->norm_hidden) norm_both(c, l, thread, threads);
    else norm(c, l->norm1, thread, threads);
    meet(threads);
    tap(c, thread, c->y, hidden, m->hidden);
    add_product(c, &l->qkv, &l->o, c->y_act, c->qkv, l->qkv.n, 0, thread, threads, n);
    meet(threads);
    tap(c, thread, c->qkv, l->qkv.n, (m->heads + 2 * m->kv_heads) * m->head_dim);
    if (c->tap) meet(threads);
    rotate(c, index, l->qkv.n, thread, threads);
    meet(threads);
    tap(c, thread, c->qkv, l->qkv.n, (m->heads + m->kv_heads) * m->head_dim);
    const int64_t units = (n + c->unit - 1) / c->unit;
    for (int64_t u = thread; u < units * m->kv_heads; u += threads)
        attend(c, index, u % m->kv_heads, u / m->kv_heads * c->unit, less(n, (u / m->kv_heads + 1) * c->unit),
               c->scratch + thread * c->scratch_bytes);
    meet(threads);
    tap(c, thread, c->attended, heads, m->heads * m->head_dim);
    for (int64_t i = thread; i < n; i += threads)
        to_act(c->attended + i * heads, c->attended_act + i * heads * c->act, m->heads * m->head_dim, heads, m->dtype);
    meet(threads);
    add_product(c, &l->o, &l->gate_up, c->attended_act, c->x, hidden, 1, thread, threads, n);
    meet(threads);
    tap(c, thread, c->x, hidden, m->hidden);
    norm(c, l->norm2, thread, threads);
    meet(threads);
    tap(c, thread, c->y, hidden, m->hidden);
    add_product(c, &l->gate_up, &l->down, c->y_act, c->gates, 2 * inner, 0, thread, threads, n);
    meet(threads);
    tap(c, thread, c->gates, 2 * inner, 2 * inner);
    if (c->tap) meet(threads);
    for (int64_t i = thread; i < n; i += threads) {
        float *gate = c->gates + i * 2 * inner;
        silu_times(gate, gate + inner, gate, inner);
        to_act(gate, c->gates_act + i * inner * c->act, inner, inner, m->dtype);
    }
    meet(threads);
    tap(c, thread, c->gates, 2 * inner, m->intermediate);
    add_product(c, &l->down, next, c->gates_act, c->x, hidden, 1, thread, threads, n);
    meet(threads);
    tap(c, thread, c->x, hidden, m->hidden);
}

static void run_rows(void *what, int64_t thread, int64_t threads)
{
    Call *c = what;
    const Model *m = c->m;
    const Rows *r = c->rows;
    const int64_t n = c->n, hidden = m->hidden, stride = padded(hidden);
    for (int64_t i = thread; i < n; i += threads) {
        float *x = c->x + i * stride;
        if (!m->fc.n) {
            if (m->layers[0].norm_hidden) memcpy(x, r->features + i * hidden, 4 * hidden);
            else embed(m, r->ids[i], x);
            continue;
        }
        float *both = c->y + i * m->fc.k;
        embed(m, r->ids[i], both);
        memcpy(both + hidden, r->features + i * hidden, 4 * hidden);
        to_act(both, c->y_act + i * m->fc.k * c->act, 2 * hidden, m->fc.k, m->dtype);
        if (m->fc.bias) memcpy(x, m->fc.bias, 4 * hidden);
        else memset(x, 0, 4 * hidden);
    }
    meet(threads);
    if (m->fc.n) {
        add_product(c, &m->fc, &m->layers[0].qkv, c->y_act, c->x, stride, 1, thread, threads, n);
        meet(threads);
    }
    for (int64_t layer = 0; layer < m->n_layers; layer++) run_layer(c, layer, thread, threads);
    norm(c, m->final_norm, thread, threads);
    meet(threads);
    tap(c, thread, c->y, stride, hidden);
    const float *given = m->flags & RAW_HIDDEN ? c->x : c->y;
    for (int64_t i = thread; i < n; i += threads) memcpy(r->hidden + i * hidden, given + i * stride, 4 * hidden);
    keep_state(c, c->y, m->n_layers, thread, threads);
    if (r->lm_head && r->n_logits)
        add_product(c, r->lm_head, 0, c->y_act + (n - r->n_logits) * stride * c->act, r->logits, r->lm_head->n, 0, thread,
                    threads, r->n_logits);
}

/* Depths and paths of all waiting rows. */
static void find_paths(Call *c)
{
    const int32_t *parents = c->cache->parents;
    for (int64_t i = 0; i < c->first + c->n; i++) {
        const int32_t above = parents[i];
        int32_t *path = c->paths + i * c->most_path;
        if (above >= 0) memcpy(path, c->paths + above * c->most_path, 4 * (c->depth[above] + 1));
        c->depth[i] = above >= 0 ? c->depth[above] + 1 : 0;
        path[c->depth[i]] = i;
    }
}

/* As many threads as have something to do: meeting takes longer than a share of fewer weights. The bits do not depend on it. */
static int64_t useful(int64_t weights, int64_t threads)
{
    enum { LEAST = 1 << 17 };
    return more(1, less(threads, weights / LEAST));
}

/* Run rows that hang on the text or on waiting ones; they wait, too. -> 0; 1: no memory, or no room; 2: a parent that is not
   there; 3: a token outside the vocabulary. */
int ne_run(const Model *m, Cache *k, const Rows *r)
{
    Call c = {.m = m, .cache = k, .rows = r, .n = r->n, .first = k->n_waiting, .act = act_bytes(m->dtype), .tap = r->taps};
    if (c.first + c.n > k->most_waiting) return 1;
    int32_t *parents = k->parents;
    for (int64_t i = 0; i < c.n; i++) {
        const int32_t above = r->parents ? r->parents[i] : (int32_t)(c.first + i) - 1;
        if (above < -1 || above >= c.first + i) return 2;
        if (r->ids[i] < 0 || r->ids[i] >= m->vocab) return 3;
        parents[c.first + i] = above;
    }
    for (int64_t i = 0; i < c.first + c.n; i++) { /* the longest path, before there is room to note paths */
        int64_t n = 1;
        for (int32_t above = parents[i]; above >= 0; above = parents[above]) n++;
        c.most_path = more(c.most_path, n);
    }
    if (k->length + c.most_path > k->capacity) return 1; /* nor are there rotary rows for such a position */
    c.score_width = padded(k->length) + padded(c.most_path) + PANEL;
    c.unit = more(1, QUERIES / group_of(m));
    const Layer *l = m->layers;
    const int64_t threads = useful(l->qkv.n * l->qkv.k + l->gate_up.n * l->gate_up.k, r->threads);
    if (set_up(&c, threads)) return 1;
    find_paths(&c);
    on_threads(run_rows, &c, threads);
    k->n_waiting = c.first + c.n;
    return 0;
}

/* Run a text and commit it, CHUNK tokens at once. Logits are of its last rows, which must lie in the last chunk. */
int ne_append(const Model *m, Cache *k, const Rows *r)
{
    int32_t path[CHUNK];
    for (int i = 0; i < CHUNK; i++) path[i] = i;
    for (int64_t done = 0; done < r->n; done += CHUNK) {
        Rows part = *r;
        part.n = less(CHUNK, r->n - done);
        part.ids += done;
        part.parents = 0;
        part.hidden += done * m->hidden;
        if (part.features) part.features += done * m->hidden;
        if (part.state_rows) part.state_rows += done * part.n_states * m->hidden;
        if (done + part.n < r->n) part.n_logits = 0;
        else part.n_logits = less(part.n_logits, part.n);
        k->n_waiting = 0;
        const int failed = ne_run(m, k, &part);
        if (failed || ne_commit(m, k, path, part.n)) return failed ? failed : 1;
    }
    return 0;
}

/* ------------------------------------------------------------------ products and choices of their own */

typedef struct {
    const Linear *l;
    const float *x;
    float *y;
    char *act;
    int64_t rows, width, dtype;
} Product;

static void run_product(void *what, int64_t thread, int64_t threads)
{
    Product *p = what;
    const int64_t bytes = act_bytes(p->dtype), k = p->l->k;
    for (int64_t i = thread; i < p->rows; i += threads)
        to_act(p->x + i * p->width, p->act + i * k * bytes, p->width, k, p->dtype);
    meet(threads);
    const Model m = {.dtype = p->dtype};
    Call c = {.m = &m};
    add_product(&c, p->l, 0, p->act, p->y, p->l->n, 0, thread, threads, p->rows);
}

/* y [rows, l.n] = x [rows, width] W^T. -> 0; 1: no memory. */
int ne_linear(const Linear *l, int64_t dtype, const float *x, int64_t rows, int64_t width, float *y, int64_t threads)
{
    Product p = {l, x, y, 0, rows, width, dtype};
    p.act = aligned_alloc(256, (4 * rows * l->k + 255) / 256 * 256);
    if (!p.act) return 1;
    on_threads(run_product, &p, useful(l->n * l->k, threads));
    free(p.act);
    return 0;
}

/* y [rows, size] = the RMS norm of each row of x. */
void ne_norm(const float *x, const float *weight, int64_t rows, int64_t size, float eps, float *y)
{
    for (int64_t i = 0; i < rows; i++) rms_norm(x + i * size, weight, y + i * size, size, eps);
}

typedef struct {
    const float *logits;
    int64_t rows, stride, vocab, k;
    int64_t *tokens;
    float *logp;
} Best;

static void run_best(void *what, int64_t thread, int64_t threads)
{
    const Best *b = what;
    for (int64_t i = thread; i < b->rows; i += threads)
        best_of_row(b->logits + i * b->stride, b->vocab, b->k, b->tokens + i * b->k, b->logp + i * b->k);
}

/* Of each row of logits the k best entries, ties to the lower index, and their log-probabilities. */
void ne_best(const float *logits, int64_t rows, int64_t stride, int64_t vocab, int64_t k, int64_t *tokens, float *logp,
             int64_t threads)
{
    Best b = {logits, rows, stride, vocab, k, tokens, logp};
    on_threads(run_best, &b, less(rows, useful(rows * vocab, threads)));
}

typedef struct {
    const float *logits;
    int64_t rows, stride, vocab, k;
    float scale;
    const double *u;
    int64_t *tokens;
    double *sums;
} Draws;

static void run_draws(void *what, int64_t thread, int64_t threads)
{
    const Draws *d = what;
    for (int64_t i = thread; i < d->rows; i += threads)
        draw_from_row(d->logits + i * d->stride, d->vocab, d->k, d->scale, d->u + i * d->k, d->tokens + i * d->k,
                      d->sums + i * ((d->vocab + BLOCK - 1) / BLOCK));
}

/* Of each row of logits k tokens drawn without replacement from softmax(scale logits), by the uniform numbers u [rows, k] -> tokens
   [rows, k]. sums [rows, vocab / BLOCK, rounded up]: room to work in. */
void ne_draw(const float *logits, int64_t rows, int64_t stride, int64_t vocab, int64_t k, float scale, const double *u,
             int64_t *tokens, double *sums, int64_t threads)
{
    Draws d = {logits, rows, stride, vocab, k, scale, u, tokens, sums};
    on_threads(run_draws, &d, less(rows, useful(rows * vocab, threads)));
}

/* softmax(scale logits) [vocab], as `ne_draw` draws from it. */
void ne_law(const float *logits, int64_t vocab, float scale, double *law) { law_of_row(logits, vocab, scale, law); }

typedef struct {
    const char *from;
    int64_t bytes;
} Reading;

static void run_read(void *what, int64_t thread, int64_t threads)
{
    const Reading *r = what;
    const int64_t lines = r->bytes / 256, from = lines * thread / threads, to = lines * (thread + 1) / threads;
    volatile double sink = read_all(r->from + 256 * from, 256 * (to - from));
    (void)sink;
}

/* Read memory with so many threads: how long that takes is what no forward can beat. */
void ne_read(const void *from, int64_t bytes, int64_t threads)
{
    Reading r = {from, bytes};
    on_threads(run_read, &r, threads);
}

static void run_peak(void *what, int64_t thread, int64_t threads)
{
    (void)thread, (void)threads;
    peak_operations(*(int64_t *)what);
}

/* float32 operations that so many threads did in as many rounds: how many a second is what no product can beat. */
double ne_peak(int64_t rounds, int64_t threads)
{
    on_threads(run_peak, &rounds, threads);
    return (double)threads * rounds * peak_operations(1);
}
