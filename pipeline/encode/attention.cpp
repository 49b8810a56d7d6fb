// Softmax attention on one CPU thread, of many independent windows (rotary positions, scores, softmax and the weighted
// sum of values in one pass) and of a grid whose queries each see a box of cells. A plain C interface, no headers of
// torch: `native.py` compiles it at first use.
//
// Per window and head: keys and values are packed once (rotated, converted, only those that are visible). Then, for
// V * LANES queries at a time and KEYS keys at a time:
//
//   scores   S[key][query] = K . Q      register tiles of TILE<V> keys x V vectors of queries
//   softmax  running maximum, 2^x by polynomial in float32, weights rounded to the storage type
//   values   O[d][query] += V . P       register tiles of TILE<V> dimensions x V vectors of queries
//
// The lanes of a vector are always QUERIES: maximum and sum are then plain vector operations, weights leave one product
// in the layout that the next one reads, and both broadcast their other factor word by word from a packed tile.
//
// Storage is float32, or bfloat16 in pairs along the summed axis: one 32-bit word per lane either way, so the only code
// that differs is the product of two words (`dot`) and packing. With AVX512-BF16 `dot` is one instruction (vdpbf16ps);
// elsewhere the same sums are done in float32. Everything else is written with the vector extensions of GCC and Clang.
//
// The result of a window depends on nothing but its own inputs: fixed order of sums, explicit vectors in every loop that
// rounds, no value shared between windows.
//
// Compiled with GCC 11 and 12 and Clang 14, run on AVX2; for AVX512-BF16 compiled and read, not run.

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <utility>

#ifndef EARTHPRESS_LANES  // floats per vector; 16 also runs (as two halves) where registers hold 8, which tests use
#ifdef __AVX512F__
#define EARTHPRESS_LANES 16
#else
#define EARTHPRESS_LANES 8
#endif
#endif

#if defined(__AVX512BF16__) && EARTHPRESS_LANES == 16
#define EARTHPRESS_DOT 1
#include <immintrin.h>
#endif

namespace {

constexpr int LANES = EARTHPRESS_LANES;
// Register tiles: 8 x 2 needs 16 + 2 + 1 of 32 registers, 4 x 3 needs 12 + 3 + 1 of 16. A single vector takes 8 rows:
// with 4 sums alone, each waits for its own last product.
constexpr int VECTORS = LANES == 16 ? 2 : 3;
template <int V>
constexpr int TILE = LANES == 16 || V == 1 ? 8 : 4;
constexpr int KEYS = 128;  // per block: scores, keys and values of a block stay in the first-level cache
constexpr int GROUP = 8;   // packing handles 8 x 8 words at a time, whatever LANES is
constexpr int MAX_DIM = 128;
constexpr size_t ALIGN = 64;
static_assert(KEYS % GROUP == 0 && GROUP % TILE<VECTORS> == 0 && VECTORS * LANES % GROUP == 0, "tiles fill blocks");

using Floats = float __attribute__((vector_size(4 * LANES)));
using Words = uint32_t __attribute__((vector_size(4 * LANES)));
using Ints = int32_t __attribute__((vector_size(4 * LANES)));
using Floats8 = float __attribute__((vector_size(32)));
using Words8 = uint32_t __attribute__((vector_size(32)));
using Halves8 = uint16_t __attribute__((vector_size(16)));

template <class T>
inline T load(const void* from) {
    T value;
    std::memcpy(&value, from, sizeof value);
    return value;
}

template <class T>
inline void store(void* to, T value) {
    std::memcpy(to, &value, sizeof value);
}

inline Words broadcast(uint32_t word) { return Words{} | word; }

// Keep a value in a register: GCC otherwise loads it again for every use, and loads are what limits the tiles.
inline void hold(Words& value) {
#if defined(__AVX512F__) || (defined(__AVX__) && EARTHPRESS_LANES == 8)
    asm("" : "+v"(value));
#else
    (void)value;
#endif
}

// ---- storage types ---------------------------------------------------------------------------------------------------

struct Single {
    using Stored = float;
    static constexpr int STEP = 1;  // values of the summed axis per word
    static constexpr uint32_t ONE = 0x3f800000;

    static Floats8 read(const Stored* from) { return load<Floats8>(from); }
    static void write(Stored* to, Floats8 value) { store(to, value); }
    static Floats dot(Floats sum, Words a, Words b) { return sum + (Floats)a * (Floats)b; }
    static Words weights(Floats first, Floats) { return (Words)first; }
    static Words8 join(Words8 first, Words8) { return first; }
    static Words8 words(const Stored* from) { return load<Words8>(from); }
};

struct Pair {
    using Stored = uint16_t;  // bfloat16
    static constexpr int STEP = 2;
    static constexpr uint32_t ONE = 0x3f803f80;

    static Floats8 read(const Stored* from) { return (Floats8)(words(from) << 16); }

    static void write(Stored* to, Floats8 value) {  // to nearest, ties to even
        Words8 bits = (Words8)value;
        bits = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
        store(to, __builtin_convertvector(bits, Halves8));
    }

    static Floats dot(Floats sum, Words a, Words b) {
#ifdef EARTHPRESS_DOT
        return (Floats)_mm512_dpbf16_ps((__m512)sum, (__m512bh)a, (__m512bh)b);
#else
        sum += (Floats)(a & 0xffff0000u) * (Floats)(b & 0xffff0000u);
        return sum + (Floats)(a << 16) * (Floats)(b << 16);
#endif
    }

    // Weights are at most 1, so rounding (ties away from zero) cannot overflow.
    static Words weights(Floats first, Floats second) {
        return (((Words)first + 0x8000) >> 16) | (((Words)second + 0x8000) & 0xffff0000u);
    }
    static Words8 join(Words8 first, Words8 second) { return first | (second << 16); }
    static Words8 words(const Stored* from) { return __builtin_convertvector(load<Halves8>(from), Words8); }
};

// ---- packing ---------------------------------------------------------------------------------------------------------

template <int... I>
inline Words8 interleave(Words8 a, Words8 b, int half, std::integer_sequence<int, I...>) {
#ifdef __clang__
    return half ? __builtin_shufflevector(a, b, (4 + I / 2 + I % 2 * 8)...)
                : __builtin_shufflevector(a, b, (I / 2 + I % 2 * 8)...);
#else
    return half ? __builtin_shuffle(a, b, Words8{(4 + I / 2 + I % 2 * 8)...})
                : __builtin_shuffle(a, b, Words8{(I / 2 + I % 2 * 8)...});
#endif
}

// Three rounds of interleaving row i with row i + 4 transpose 8 x 8 words.
inline void transpose(Words8 (&rows)[GROUP]) {
    constexpr auto eight = std::make_integer_sequence<int, GROUP>{};
    for (int round = 0; round < 3; round++) {
        Words8 next[GROUP];
        for (int i = 0; i < 4; i++) {
            next[2 * i] = interleave(rows[i], rows[i + 4], 0, eight);
            next[2 * i + 1] = interleave(rows[i], rows[i + 4], 1, eight);
        }
        for (int i = 0; i < GROUP; i++) rows[i] = next[i];
    }
}

// One row of a query or key: rotated by halves (i, i + dim / 2), in storage type. `cos` may be null.
template <class M>
inline void rotate(const typename M::Stored* from, const float* cos, const float* sin, int dim,
                   typename M::Stored* to) {
    const int half = dim / 2;
    for (int i = 0; i < half; i += GROUP) {
        Floats8 a = M::read(from + i), b = M::read(from + half + i);
        if (cos) {
            const Floats8 c = load<Floats8>(cos + i), s = load<Floats8>(sin + i);
            const Floats8 turned = a * c - b * s;
            b = b * c + a * s;
            a = turned;
        }
        M::write(to + i, a);
        M::write(to + half + i, b);
    }
}

// The rows of one operand, window and head.
template <class M>
struct Rows {
    const typename M::Stored* base;
    int64_t token;           // elements between tokens
    const float *cos, *sin;  // of this head, or null
    int64_t turn;            // elements between tokens of cos and sin
    int dim;
};

// Up to 8 rotated rows, transposed: `to[j * stride + i]` is word j of row i; rows past `count` are 0.
// Not inlined, like `write_rows`: compiled once, not once for every V.
template <class M>
__attribute__((noinline)) void pack_rows(const Rows<M>& rows, const int32_t* tokens, int count, uint32_t* to,
                                         size_t stride) {
    alignas(ALIGN) uint32_t buffer[GROUP][MAX_DIM];
    const int words = rows.dim / M::STEP;
    for (int i = 0; i < GROUP; i++) {
        if (i >= count) {
            std::memset(buffer[i], 0, words * sizeof(uint32_t));
            continue;
        }
        const int64_t t = tokens[i];
        const float *cos = rows.cos ? rows.cos + t * rows.turn : nullptr,
                    *sin = rows.cos ? rows.sin + t * rows.turn : nullptr;
        rotate<M>(rows.base + t * rows.token, cos, sin, rows.dim,
                  reinterpret_cast<typename M::Stored*>(buffer[i]));
    }
    for (int j = 0; j < words; j += GROUP) {
        Words8 block[GROUP];
        for (int i = 0; i < GROUP; i++) block[i] = load<Words8>(&buffer[i][j]);
        transpose(block);
        for (int i = 0; i < GROUP; i++) store(to + (j + i) * stride, block[i]);
    }
}

// Keys in groups of 8: `to[(group * words + j) * 8 + i]` is word j of key group * 8 + i.
template <class M>
void pack_keys(const Rows<M>& rows, const int32_t* tokens, int count, uint32_t* to) {
    for (int i = 0; i < count; i += GROUP)
        pack_rows<M>(rows, tokens + i, count - i, to + (size_t)i * (rows.dim / M::STEP), GROUP);
}

// Values in groups of 8 dimensions: `to[(group * steps + j) * 8 + i]` is dimension group * 8 + i of step j. A token
// below 0 stands for a row of zeros.
template <class M>
void pack_values(const Rows<M>& rows, const int32_t* tokens, int count, uint32_t* to) {
    const int steps = (count + M::STEP - 1) / M::STEP;
    for (int j = 0; j < steps; j++) {
        const int first = j * M::STEP, second = first + M::STEP - 1;
        const auto* a = tokens[first] >= 0 ? rows.base + tokens[first] * rows.token : nullptr;
        const auto* b = second < count && tokens[second] >= 0 ? rows.base + tokens[second] * rows.token : nullptr;
        for (int d = 0; d < rows.dim; d += GROUP)
            store(to + (size_t)d * steps + (size_t)j * GROUP,
                  M::join(a ? M::words(a + d) : Words8{}, b ? M::words(b + d) : Words8{}));
    }
}

// ---- the three steps of a block --------------------------------------------------------------------------------------

// Weights exp(scale * x) for x = score - maximum <= 0, as 2^n * 2^f with |f| <= 1/2.
//
// Scores stay unscaled, so that bfloat16 queries are not rounded a second time; the scale is folded into the constants.
// Exactly 1 at 0 and exactly 0 below 2^-64, which no float32 sum of at least 1 would notice: rescaling at the first
// block (x = -inf) relies on that zero, and nothing becomes denormal.
// Minimax polynomial of 2^f with p(0) = 1, fitted for this file: relative error 9e-8, 1.6e-7 evaluated in float32.
struct Exponential {
    Floats turns, unit, floor, p1, p2, p3, p4, p5;

    explicit Exponential(float scale) {
        const float c = scale * 1.44269504f;  // log2(e)
        const auto all = [](float value) {
            uint32_t bits;
            std::memcpy(&bits, &value, sizeof bits);
            return (Floats)broadcast(bits);
        };
        turns = all(c), unit = all(-1.0f / c), floor = all(-64.0f / c);
        p1 = all(0x1.62e42ap-1f * c), p2 = all(0x1.ebf9bcp-3f * c * c), p3 = all(0x1.c6b752p-5f * c * c * c);
        p4 = all(0x1.3cea88p-7f * c * c * c * c), p5 = all(0x1.5bba14p-10f * c * c * c * c * c);
    }

    Floats operator()(Floats x) const {
        constexpr float magic = 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer, held in the low bits
        const Floats shifted = x * turns + magic;
        const Floats f = (shifted - magic) * unit + x;
        Floats p = f * p5 + p4;
        p = p * f + p3;
        p = p * f + p2;
        p = p * f + p1;
        p = p * f + 1.0f;
        const Words bits = (Words)p + ((Words)shifted << 23);
        return x <= floor ? Floats{} : (Floats)bits;  // NaN stays NaN, so that a broken key shows
    }
};

// The three steps are functions of their own, never inlined: each then has all registers for its inner loop.
#define STEP_OF_BLOCK __attribute__((noinline))

// A register tile: sum[r][v] += the product of `left` (vectors of queries) and `right` (one word per row r), over
// `steps` words. In `right`, rows lie `across` words apart and steps `along`.
template <class M, int V, int R>
inline void multiply(const void* left, const uint32_t* right, size_t across, size_t along, int steps,
                     Floats (&sum)[R][V]) {
    const auto* at = static_cast<const uint32_t*>(left);
    for (int j = 0; j < steps; j++, at += V * LANES, right += along) {
        Words a[V];
        for (int v = 0; v < V; v++) hold(a[v] = load<Words>(at + v * LANES));
#pragma GCC unroll 8
        for (int r = 0; r < R; r++) {
            const Words b = broadcast(right[r * across]);
            for (int v = 0; v < V; v++) sum[r][v] = M::dot(sum[r][v], a[v], b);
        }
    }
}

// Scores of a block of keys, and the running maximum of every query.
template <class M, int V>
STEP_OF_BLOCK void score(const uint32_t* q, const uint32_t* k, int words, int count, float* scores, Floats* top) {
    constexpr int rows = TILE<V>;
    for (int row = 0; row < count; row += rows, scores += rows * V * LANES) {
        Floats sum[rows][V] = {};
        multiply<M>(q, k + (size_t)(row / GROUP * GROUP) * words + row % GROUP, 1, GROUP, words, sum);
#pragma GCC unroll 8
        for (int r = 0; r < rows; r++)
            for (int v = 0; v < V; v++) store(scores + (r * V + v) * LANES, sum[r][v]);
        for (int v = 0; v < V; v++) {
            Floats best = top[v];
#pragma GCC unroll 8
            for (int r = 0; r < rows; r++)
                if (row + r < count) best = sum[r][v] > best ? sum[r][v] : best;
            top[v] = best;
        }
    }
}

// Scores to weights, in place; total = total * keep + the weights as rounded.
template <class M, int V>
STEP_OF_BLOCK void soften(float* scores, int count, const Exponential& constants, const Floats* top, const Floats* keep,
                          Floats* total) {
    const Exponential exponential = constants;
    const Words one = broadcast(M::ONE);
    const int whole = count / M::STEP;
    Floats sum[V] = {};
    const auto put = [&](int j, int v, Floats first, Floats second) {
        const Words word = M::weights(first, second);
        sum[v] = M::dot(sum[v], word, one);
        store(scores + (size_t)(j * V + v) * LANES, word);
    };
    for (int j = 0; j < whole; j++)
        for (int v = 0; v < V; v++) {
            const float* from = scores + (size_t)(j * M::STEP * V + v) * LANES;
            const Floats first = exponential(load<Floats>(from) - top[v]);
            put(j, v, first, M::STEP == 1 ? first : exponential(load<Floats>(from + V * LANES) - top[v]));
        }
    for (int v = 0; v < V; v++) {
        if (whole * M::STEP < count) {  // a last key without a partner
            const float* from = scores + (size_t)(whole * M::STEP * V + v) * LANES;
            put(whole, v, exponential(load<Floats>(from) - top[v]), Floats{});
        }
        total[v] = total[v] * keep[v] + sum[v];
    }
}

// Packed values of consecutive keys, `steps` words of them; groups of dimensions lie `group` words apart.
struct Run {
    const uint32_t* values;
    size_t group;
    int steps;
};

// Outputs of a block of keys, which is one run after the other: out = out * keep + values . weights.
template <class M, int V>
STEP_OF_BLOCK void gather(const float* weights, const Run* runs, int count, int dim, const Floats* keep, float* out) {
    constexpr int rows = TILE<V>;
    for (int d = 0; d < dim; d += rows, out += rows * V * LANES) {
        Floats sum[rows][V] = {};
        const float* from = weights;
        for (int i = 0; i < count; i++) {
            const Run run = runs[i];
            multiply<M>(from, run.values + (size_t)(d / GROUP) * run.group + d % GROUP, 1, GROUP, run.steps, sum);
            from += (size_t)run.steps * V * LANES;
        }
#pragma GCC unroll 8
        for (int r = 0; r < rows; r++)
            for (int v = 0; v < V; v++) {
                float* at = out + (r * V + v) * LANES;
                store(at, load<Floats>(at) * keep[v] + sum[r][v]);
            }
    }
}

// ---- one head --------------------------------------------------------------------------------------------------------

// Working memory of a thread, kept between calls: mapping fresh pages would cost more than a small window's attention.
class Memory {
  public:
    ~Memory() { std::free(memory); }

    // `parts[i]` becomes the start of words[i] words, aligned; false: out of memory.
    template <int N>
    bool cut(const size_t (&words)[N], void* (&parts)[N]) {
        size_t starts[N], bytes = 0;
        for (int i = 0; i < N; i++) {
            starts[i] = bytes;
            bytes += (words[i] * sizeof(uint32_t) + ALIGN - 1) / ALIGN * ALIGN;
        }
        if (bytes > size) {
            std::free(memory);
            memory = static_cast<char*>(std::aligned_alloc(ALIGN, bytes));
            size = memory ? bytes : 0;
            if (!memory) return false;
        }
        for (int i = 0; i < N; i++) parts[i] = memory + starts[i];
        return true;
    }

  private:
    char* memory = nullptr;
    size_t size = 0;
};

struct Scratch {
    uint32_t *keys, *values, *queries;
    float *scores, *out;
    int32_t *seen, *every;  // visible tokens; all queries

    bool reserve(Memory& memory, int64_t query_count, int64_t key_count, int dim, int step) {
        const size_t words = dim / step, lanes = VECTORS * LANES, padded = (key_count + GROUP - 1) / GROUP * GROUP;
        const size_t sizes[] = {padded * words, (padded / step + 1) * dim, lanes * words,      lanes * KEYS,
                                lanes * dim,    (size_t)key_count,         (size_t)query_count};
        void* parts[7];
        if (!memory.cut(sizes, parts)) return false;
        keys = static_cast<uint32_t*>(parts[0]), values = static_cast<uint32_t*>(parts[1]);
        queries = static_cast<uint32_t*>(parts[2]);
        scores = static_cast<float*>(parts[3]), out = static_cast<float*>(parts[4]);
        seen = static_cast<int32_t*>(parts[5]), every = static_cast<int32_t*>(parts[6]);
        return true;
    }
};

// Outputs, one row of `dim` per query, from out[d][query] to row tokens[query].
template <class M>
__attribute__((noinline)) void write_rows(const float* out, int lanes, const int32_t* tokens, int count, int dim,
                                          typename M::Stored* to, int64_t stride) {
    for (int first = 0; first < count; first += GROUP)
        for (int d = 0; d < dim; d += GROUP) {
            Words8 block[GROUP];
            for (int i = 0; i < GROUP; i++) block[i] = load<Words8>(out + (size_t)(d + i) * lanes + first);
            transpose(block);
            for (int i = 0; i < GROUP && first + i < count; i++)
                M::write(to + tokens[first + i] * stride + d, (Floats8)block[i]);
        }
}

// Outputs by the sums of their weights; a sum of 0 is that of a query without any visible key, whose outputs are 0.
template <int V>
inline void divide(float* out, const Floats* total, int dim) {
    Floats share[V];
    for (int v = 0; v < V; v++) share[v] = total[v] == 0.0f ? Floats{} : 1.0f / total[v];
    for (int d = 0; d < dim; d++)
        for (int v = 0; v < V; v++) {
            float* at = out + (size_t)(d * V + v) * LANES;
            store(at, load<Floats>(at) * share[v]);
        }
}

// `count` queries, at most V * LANES, against the packed keys and values.
template <class M, int V>
void attend_block(const Scratch& scratch, int key_count, const Rows<M>& q, const int32_t* tokens, int count,
                  typename M::Stored* to, int64_t stride) {
    const int dim = q.dim, words = dim / M::STEP;
    const size_t group = (size_t)(key_count + M::STEP - 1) / M::STEP * GROUP;
    const Exponential exponential(1.0f / __builtin_sqrtf((float)dim));
    for (int i = 0; i < V * LANES; i += GROUP)
        pack_rows<M>(q, tokens + i, count - i, scratch.queries + i, V * LANES);
    Floats top[V], total[V] = {};
    for (int v = 0; v < V; v++) top[v] = Floats{} - std::numeric_limits<float>::infinity();
    std::memset(scratch.out, 0, sizeof(float) * dim * V * LANES);
    for (int first = 0; first < key_count; first += KEYS) {
        const int keys = key_count - first < KEYS ? key_count - first : KEYS;
        Floats before[V], keep[V];
        for (int v = 0; v < V; v++) before[v] = top[v];
        score<M, V>(scratch.queries, scratch.keys + (size_t)first * words, words, keys, scratch.scores, top);
        for (int v = 0; v < V; v++) keep[v] = exponential(before[v] - top[v]);
        soften<M, V>(scratch.scores, keys, exponential, top, keep, total);
        const Run run{scratch.values + (size_t)first / M::STEP * GROUP, group, (keys + M::STEP - 1) / M::STEP};
        gather<M, V>(scratch.scores, &run, 1, dim, keep, scratch.out);
    }
    divide<V>(scratch.out, total, dim);
    write_rows<M>(scratch.out, V * LANES, tokens, count, dim, to, stride);
}

template <class M>
void attend_head(const Scratch& scratch, int key_count, const Rows<M>& q, int64_t queries, typename M::Stored* to,
                 int64_t stride) {
    for (int64_t first = 0; first < queries; first += VECTORS * LANES) {
        const int count = (int)(queries - first < VECTORS * LANES ? queries - first : VECTORS * LANES);
        const int32_t* tokens = scratch.every + first;
        if (count <= LANES)
            attend_block<M, 1>(scratch, key_count, q, tokens, count, to, stride);
        else if (count <= 2 * LANES)
            attend_block<M, 2>(scratch, key_count, q, tokens, count, to, stride);
        else
            attend_block<M, VECTORS>(scratch, key_count, q, tokens, count, to, stride);
    }
}

// ---- all windows -----------------------------------------------------------------------------------------------------

struct Shape {
    int64_t windows, queries, keys, heads, dim;
    int64_t q_window, q_token, kv_window, kv_token;  // strides, elements
};

struct Turns {
    const float *q_cos, *q_sin, *k_cos, *k_sin;
};

// The tokens of one window that are not kept out.
int list_visible(const uint8_t* visible, int64_t keys, int32_t* tokens) {
    int count = 0;
    for (int64_t i = 0; i < keys; i++)
        if (!visible || visible[i]) tokens[count++] = (int32_t)i;
    return count;
}

template <class M>
bool attend(const typename M::Stored* q, const typename M::Stored* k, const typename M::Stored* v,
            typename M::Stored* out, const Turns& turns, const uint8_t* visible, const Shape& shape) {
    static thread_local Memory memory;
    Scratch scratch;
    const int dim = (int)shape.dim;
    const int64_t width = shape.heads * dim;
    if (!scratch.reserve(memory, shape.queries, shape.keys, dim, M::STEP)) return false;
    list_visible(nullptr, shape.queries, scratch.every);
    const auto rows = [&](const typename M::Stored* from, int64_t token, const float* cos, const float* sin, int64_t h) {
        const int64_t turn = h * dim / 2;
        return Rows<M>{from + h * dim, token, cos ? cos + turn : nullptr, cos ? sin + turn : nullptr, width / 2, dim};
    };
    for (int64_t w = 0; w < shape.windows; w++) {
        const int count = list_visible(visible ? visible + w * shape.keys : nullptr, shape.keys, scratch.seen);
        auto* to = out + w * shape.queries * width;
        if (!count) {
            std::memset(to, 0, sizeof(*to) * shape.queries * width);
            continue;
        }
        for (int64_t h = 0; h < shape.heads; h++) {
            const auto key = rows(k + w * shape.kv_window, shape.kv_token, turns.k_cos, turns.k_sin, h);
            const auto value = rows(v + w * shape.kv_window, shape.kv_token, nullptr, nullptr, h);
            const auto query = rows(q + w * shape.q_window, shape.q_token, turns.q_cos, turns.q_sin, h);
            pack_keys<M>(key, scratch.seen, count, scratch.keys);
            pack_values<M>(value, scratch.seen, count, scratch.values);
            attend_head<M>(scratch, count, query, shape.queries, to + h * dim, width);
        }
    }
    return true;
}

// ---- boxes of a grid ------------------------------------------------------------------------------------------------
//
// Tokens lie in order (row, col, k), and the query of a cell sees the tokens of `box` x `box` cells: in every row of
// keys a run of columns. Nothing is copied per query. Every row of keys is packed once per head into a ring, which
// holds as many rows as a group of queries needs. A group is a small rectangle of queries, one per lane; it goes over
// the union of its boxes, and every lane leaves out the keys of columns and rows that are not its own (weight exactly
// 0).
//
// Packed are the visible keys alone. Which of them become pairs of bfloat16 and where blocks end follows from the group
// and from columns, never from how many keys are hidden elsewhere, and a weight of 0 changes no sum: the result of a
// query depends on nothing but the keys of its box and the shape of its group. The exception is a value in the union
// that is not finite, which reaches all queries of the group.

// Columns count from the first that any box holds; these two are no column of a key and no column of a box.
constexpr uint32_t NO_KEY = 0xc0000000, NO_BOX = 0x60000000;
constexpr int64_t MAX_CELLS = 1 << 28;  // per axis: column - NO_BOX and NO_KEY - column stay outside of every box
constexpr int MAX_GROUP_ROWS = 8;       // of queries: the ring holds so many rows more than a box

struct Boxes {
    int64_t q_rows, q_cols, q_cell, k_rows, k_cols, k_cell, heads, dim, box;  // *_cell: tokens per cell
    int64_t q_row, k_row, v_row;                                             // tokens between rows
    int64_t q_token, k_token, v_token;                                       // elements between tokens
    const int32_t *row_starts, *col_starts;
    const uint8_t* visible;  // (row, col, k) of the keys, or null
};

// Queries of a group: `rows` rows of `tokens` consecutive tokens, `vectors` * LANES at most.
struct Group {
    int vectors, rows, tokens;
};

int common_divisor(int a, int b) { return b ? common_divisor(b, a % b) : a; }

// The cheapest group per query, from the size of a box and the queries per cell alone. A smaller group wastes fewer
// lanes on keys outside of their boxes, but tiles of few vectors are less efficient. COSTS is of one key for so many
// vectors: on AVX2 as measured (boxes of 4 to 16 cells, 1 to 12 tokens per cell, head widths 16 and 64); for 16 lanes
// from counting the instructions of a tile.
constexpr double COSTS[] = {LANES == 16 ? 1.1 : 1.75, LANES == 16 ? 2.0 : 2.1, 3.0};

Group choose_group(int64_t box, int64_t cell) {
    Group best{};
    double least = std::numeric_limits<double>::infinity();
    for (int vectors = VECTORS; vectors >= 1; vectors--)
        for (int rows = 1; rows <= MAX_GROUP_ROWS && rows <= vectors * LANES; rows++) {
            int tokens = vectors * LANES / rows;
            if (tokens >= cell) tokens -= (int)(tokens % cell);
            const double touched = 1 + (tokens - common_divisor(tokens, (int)cell)) / (double)cell;  // cells, mean
            const double keys = (touched + box - 1) * (double)(rows + box - 1);
            const double cost = keys * COSTS[vectors - 1] / (rows * tokens);
            if (cost < least * 0.999) least = cost, best = {vectors, rows, tokens};
        }
    return best;
}

// Packed rows of keys and values of one head. Row r of the grid is in slot r % slots.
struct Ring {
    int64_t slots, cols, row_keys;   // cols: that boxes hold; row_keys: keys per row at most
    int64_t first_col;               // in the grid
    size_t key_words, value_words;   // per slot
    uint32_t *keys, *values;         // keys: [slot][key][word]; values as `pack_values`
    uint32_t* columns;               // of every key: [slot][key]
    int32_t* firsts;                 // first key of every column, and the number of keys: [slot][cols + 1]
    int32_t* tokens;                 // of the row that is being packed
    uint32_t* queries;
    float *scores, *out;

    bool reserve(Memory& memory, const Boxes& b, int64_t rows, int step) {
        slots = rows;
        first_col = b.col_starts[0];
        cols = b.col_starts[b.q_cols - 1] + b.box - first_col;
        row_keys = cols * b.k_cell;
        const size_t lanes = VECTORS * LANES, words = b.dim / step;
        key_words = (size_t)row_keys * words;
        value_words = (size_t)(row_keys / step + 1) * b.dim;
        const size_t sizes[] = {slots * key_words + GROUP * words,  // tiles of keys may end past a row: read, not used
                                slots * value_words,
                                (size_t)(slots * row_keys),
                                (size_t)(slots * (cols + 1)),
                                (size_t)row_keys,
                                lanes * words,
                                lanes * (KEYS + 2 * GROUP),
                                lanes * b.dim};
        void* parts[8];
        if (!memory.cut(sizes, parts)) return false;
        keys = static_cast<uint32_t*>(parts[0]), values = static_cast<uint32_t*>(parts[1]);
        columns = static_cast<uint32_t*>(parts[2]);
        firsts = static_cast<int32_t*>(parts[3]), tokens = static_cast<int32_t*>(parts[4]);
        queries = static_cast<uint32_t*>(parts[5]);
        scores = static_cast<float*>(parts[6]), out = static_cast<float*>(parts[7]);
        return true;
    }

    // Visible keys of a row, column after column. Where keys go in pairs, a hidden key may leave an empty place, so
    // that a column begins at an even or odd place as it would if all were visible.
    template <class M>
    void pack(int64_t row, const Boxes& b, const typename M::Stored* k, const typename M::Stored* v) const {
        const int64_t slot = row % slots;
        uint32_t* column = columns + slot * row_keys;
        int32_t* first = firsts + slot * (cols + 1);
        const uint8_t* seen = b.visible ? b.visible + (row * b.k_cols + first_col) * b.k_cell : nullptr;
        int count = 0;
        const auto put = [&](int64_t token, uint32_t in) {
            tokens[count] = (int32_t)token;
            column[count++] = in;
        };
        for (int64_t col = 0, token = 0; col < cols; col++) {
            if ((count - token) % M::STEP) put(-1, NO_KEY);
            first[col] = count;
            for (int64_t i = 0; i < b.k_cell; i++, token++)
                if (!seen || seen[token]) put(token, (uint32_t)col);
        }
        first[cols] = count;
        const int dim = (int)b.dim;
        const int64_t skip = first_col * b.k_cell;
        k += (row * b.k_row + skip) * b.k_token, v += (row * b.v_row + skip) * b.v_token;
        uint32_t* to = keys + slot * key_words;
        for (int i = 0; i < count; i++, to += dim / M::STEP)
            if (tokens[i] < 0)
                std::memset(to, 0, dim * sizeof *k);
            else
                std::memcpy(to, k + tokens[i] * b.k_token, dim * sizeof *k);
        pack_values<M>(Rows<M>{v, b.v_token, nullptr, nullptr, 0, dim}, tokens, count, values + slot * value_words);
    }
};

// Columns that each lane sees: `starts` are the first ones plus 2^31, which makes one signed comparison of two.
template <int V>
struct Spans {
    Words starts[V];
    Ints end;
};

// Scores of R keys, -infinity where a column is outside of a lane's box, and the running maximum.
template <class M, int V, int R>
inline void score_tile(const uint32_t* q, const uint32_t* k, int words, const uint32_t* columns, const Spans<V>& spans,
                       float* scores, Floats* top) {
    const Floats never = Floats{} - std::numeric_limits<float>::infinity();
    Floats sum[R][V] = {};
    multiply<M>(q, k, words, 1, words, sum);
#pragma GCC unroll 8
    for (int r = 0; r < R; r++) {
        const Words column = broadcast(columns[r]);
        for (int v = 0; v < V; v++) {
            const Floats score = (Ints)(column - spans.starts[v]) < spans.end ? sum[r][v] : never;
            store(scores + (r * V + v) * LANES, score);
            top[v] = score > top[v] ? score : top[v];
        }
    }
}

// Scores of keys that lie one after the other; the last tile is a half one if that will do.
template <class M, int V>
STEP_OF_BLOCK void score_boxes(const uint32_t* q, const uint32_t* k, int words, int count, const uint32_t* columns,
                               const Spans<V>& spans, float* scores, Floats* top) {
    constexpr int rows = TILE<V>;
    Floats best[V];
    for (int v = 0; v < V; v++) best[v] = top[v];
    int row = 0;
    for (; row + rows / 2 < count; row += rows)
        score_tile<M, V, rows>(q, k + (size_t)row * words, words, columns + row, spans, scores + row * V * LANES, best);
    if (row < count)
        score_tile<M, V, rows / 2>(q, k + (size_t)row * words, words, columns + row, spans, scores + row * V * LANES,
                                   best);
    for (int v = 0; v < V; v++) top[v] = best[v];
}

// The queries of a group; lanes past `count` have no box.
struct Queries {
    alignas(ALIGN) uint32_t row_starts[VECTORS * LANES], col_starts[VECTORS * LANES];  // columns as in the ring
    int32_t tokens[VECTORS * LANES], places[VECTORS * LANES];  // where to read and where to write, from the first row
    int count;
    int64_t first_row, end_row;  // of the union of boxes
    int first_col, end_col;
};

// One group against the ring: blocks of whole rows where they are short, of columns where they are long.
template <class M, int V>
class GroupOfBoxes {
  public:
    GroupOfBoxes(const Ring& ring, const Boxes& boxes, const Queries& queries)
        : ring(ring), boxes(boxes), queries(queries), exponential(1.0f / __builtin_sqrtf((float)boxes.dim)) {
        spans.end = Ints{} + (INT32_MIN + (int)boxes.box);
    }

    void attend(const Rows<M>& q, typename M::Stored* to, int64_t stride) {
        const int dim = q.dim;
        for (int i = 0; i < V * LANES; i += GROUP)
            pack_rows<M>(q, queries.tokens + i, queries.count - i, ring.queries + i, V * LANES);
        // Not -infinity: that minus itself would not be a number where a lane has seen no key yet.
        for (int v = 0; v < V; v++) before[v] = top[v] = Floats{} - std::numeric_limits<float>::max();
        std::memset(ring.out, 0, sizeof(float) * dim * V * LANES);
        const int width = queries.end_col - queries.first_col;
        const int64_t room = width * boxes.k_cell + 2 * (M::STEP - 1);
        const int64_t rows = room < KEYS ? KEYS / room : 1;  // per block
        const int64_t cols = room <= KEYS ? width : boxes.k_cell < KEYS ? KEYS / boxes.k_cell : 1;
        for (int64_t row = queries.first_row; row < queries.end_row; row++) {
            const int32_t* first = ring.firsts + row % ring.slots * (ring.cols + 1);
            find_starts(row);
            const bool last = (row - queries.first_row) % rows == rows - 1;
            for (int64_t col = queries.first_col; col < queries.end_col; col += cols) {
                const int end = first[col + cols < queries.end_col ? col + cols : queries.end_col];
                for (int from = first[col]; from < end; from += KEYS) {
                    add(row, from, end - from < KEYS ? end : from + KEYS);
                    if (rows == 1) finish();
                }
            }
            if (last) finish();
        }
        finish();
        divide<V>(ring.out, total, dim);
        write_rows<M>(ring.out, V * LANES, queries.places, queries.count, dim, to, stride);
    }

  private:
    const Ring& ring;
    const Boxes& boxes;
    const Queries& queries;
    const Exponential exponential;
    Floats before[V], top[V], total[V] = {};
    Spans<V> spans;
    Run runs[KEYS];
    int run_count = 0, keys = 0;  // of the block

    void find_starts(int64_t row) {
        const Words at = broadcast((uint32_t)row), box = broadcast((uint32_t)boxes.box);
        for (int v = 0; v < V; v++) {
            const Words inside = (Words)(at - load<Words>(queries.row_starts + v * LANES) < box);
            const Words start = load<Words>(queries.col_starts + v * LANES);
            spans.starts[v] = ((start & inside) | (broadcast(NO_BOX) & ~inside)) + 0x80000000u;
        }
    }

    // Keys [from, end) of a row join the block, from an even to an even place where keys go in pairs.
    void add(int64_t row, int from, int end) {
        const int words = (int)boxes.dim / M::STEP, begin = from / M::STEP * M::STEP;
        const int count = (end - begin + M::STEP - 1) / M::STEP * M::STEP;
        const int64_t slot = row % ring.slots;
        const int32_t* first = ring.firsts + slot * (ring.cols + 1);
        uint32_t columns[KEYS + 2 * GROUP];
        if (begin < from) columns[0] = NO_KEY;
        std::memcpy(columns + (from - begin), ring.columns + slot * ring.row_keys + from,
                    (end - from) * sizeof *columns);
        for (int i = 0; i < GROUP; i++) columns[end - begin + i] = NO_KEY;
        score_boxes<M, V>(ring.queries, ring.keys + slot * ring.key_words + (size_t)begin * words, words, count,
                          columns, spans, ring.scores + (size_t)keys * V * LANES, top);
        const size_t steps = (first[ring.cols] + M::STEP - 1) / M::STEP;
        runs[run_count++] = {ring.values + slot * ring.value_words + (size_t)begin / M::STEP * GROUP, steps * GROUP,
                             count / M::STEP};
        keys += count;
    }

    void finish() {
        if (!keys) return;
        Floats keep[V];
        for (int v = 0; v < V; v++) keep[v] = exponential(before[v] - top[v]);
        soften<M, V>(ring.scores, keys, exponential, top, keep, total);
        gather<M, V>(ring.scores, runs, run_count, (int)boxes.dim, keep, ring.out);
        for (int v = 0; v < V; v++) before[v] = top[v];
        run_count = keys = 0;
    }
};

// Tokens [first, first + tokens) of `rows` rows.
void list_queries(const Boxes& b, const Ring& ring, int64_t row, int rows, int64_t first, int tokens, Queries& to) {
    to.count = rows * tokens;
    for (int i = 0; i < VECTORS * LANES; i++) {
        if (i >= to.count) {
            to.row_starts[i] = to.col_starts[i] = NO_BOX;
            continue;
        }
        const int64_t r = i / tokens, token = first + i % tokens;
        to.row_starts[i] = (uint32_t)b.row_starts[row + r];
        to.col_starts[i] = (uint32_t)(b.col_starts[token / b.q_cell] - ring.first_col);
        to.tokens[i] = (int32_t)(r * b.q_row + token), to.places[i] = (int32_t)(r * b.q_cols * b.q_cell + token);
    }
    const int last = to.count - 1;
    to.first_row = to.row_starts[0], to.end_row = to.row_starts[last] + b.box;
    to.first_col = (int)to.col_starts[0], to.end_col = (int)(to.col_starts[last] + b.box);
}

// Rows of keys that the neediest group of queries sees.
int64_t rows_of_ring(const Boxes& b, const Group& group) {
    int64_t most = 0;
    for (int64_t row = 0; row < b.q_rows; row += group.rows) {
        const int64_t last = row + group.rows < b.q_rows ? row + group.rows - 1 : b.q_rows - 1;
        const int64_t rows = b.row_starts[last] + b.box - b.row_starts[row];
        most = rows > most ? rows : most;
    }
    return most;
}

template <class M>
bool attend_boxes(const typename M::Stored* q, const typename M::Stored* k, const typename M::Stored* v,
                  typename M::Stored* out, const Boxes& b) {
    static thread_local Memory memory;
    const Group group = choose_group(b.box, b.q_cell);
    const int64_t width = b.heads * b.dim, row_tokens = b.q_cols * b.q_cell;
    Ring ring;
    Queries queries;
    if (!ring.reserve(memory, b, rows_of_ring(b, group), M::STEP)) return false;
    for (int64_t h = 0; h < b.heads; h++) {
        int64_t next = 0;  // row of keys to pack
        for (int64_t row = 0; row < b.q_rows; row += group.rows) {
            const int rows = (int)(b.q_rows - row < group.rows ? b.q_rows - row : group.rows);
            if (next < b.row_starts[row]) next = b.row_starts[row];
            for (; next < b.row_starts[row + rows - 1] + b.box; next++)
                ring.pack<M>(next, b, k + h * b.dim, v + h * b.dim);
            const Rows<M> from{q + row * b.q_row * b.q_token + h * b.dim, b.q_token, nullptr, nullptr, 0, (int)b.dim};
            auto* to = out + row * row_tokens * width + h * b.dim;
            for (int64_t first = 0; first < row_tokens; first += group.tokens) {
                const int64_t left = row_tokens - first;
                list_queries(b, ring, row, rows, first, (int)(left < group.tokens ? left : group.tokens), queries);
                if (queries.count <= LANES)
                    GroupOfBoxes<M, 1>(ring, b, queries).attend(from, to, width);
                else if (queries.count <= 2 * LANES)
                    GroupOfBoxes<M, 2>(ring, b, queries).attend(from, to, width);
                else
                    GroupOfBoxes<M, VECTORS>(ring, b, queries).attend(from, to, width);
            }
        }
    }
    return true;
}

// Whether first rows or columns never fall and their boxes lie inside `cells`.
bool are_starts(const int32_t* starts, int64_t count, int64_t box, int64_t cells) {
    for (int64_t i = 0; i < count; i++)
        if (starts[i] < (i ? starts[i - 1] : 0) || starts[i] + box > cells) return false;
    return true;
}

}  // namespace

extern "C" {

// What was compiled: floats per vector times 10, plus 1 where bfloat16 products are one instruction.
int earthpress_attention_target(void) {
#ifdef EARTHPRESS_DOT
    return LANES * 10 + 1;
#else
    return LANES * 10;
#endif
}

// Which compiler made this: it may round a * b + c once or twice, so it is part of what decides the bytes.
const char* earthpress_attention_compiler(void) { return __VERSION__; }

// out (window, query, head, dim) = attention of q (window, query, head, dim) over k, v (window, key, head, dim).
//
// `bits` 32: float32, 16: bfloat16, of q, k, v and out. Heads are `dim` elements apart in q, k and v, windows and tokens
// by the strides given, in elements. cos and sin: (query or key, head, dim / 2) float32 or null, rotating halves.
// visible: (window, key), 0 keeps a key out; null: all are seen. A window that sees no key gives zeros.
// Returns 0; 1: out of memory; 2: a shape that this file does not handle.
int earthpress_attention(int bits, const void* q, const void* k, const void* v, void* out, const float* q_cos,
                         const float* q_sin, const float* k_cos, const float* k_sin, const uint8_t* visible,
                         int64_t windows, int64_t queries, int64_t keys, int64_t heads, int64_t dim, int64_t q_window,
                         int64_t q_token, int64_t kv_window, int64_t kv_token) {
    if (dim < 16 || dim > MAX_DIM || dim % 16 || keys > INT32_MAX / 2 || queries > INT32_MAX / 2) return 2;
    const Shape shape{windows, queries, keys, heads, dim, q_window, q_token, kv_window, kv_token};
    const Turns turns{q_cos, q_sin, k_cos, k_sin};
    bool done = false;
    if (bits == 32)
        done = attend<Single>(static_cast<const float*>(q), static_cast<const float*>(k), static_cast<const float*>(v),
                              static_cast<float*>(out), turns, visible, shape);
    else if (bits == 16)
        done = attend<Pair>(static_cast<const uint16_t*>(q), static_cast<const uint16_t*>(k),
                            static_cast<const uint16_t*>(v), static_cast<uint16_t*>(out), turns, visible, shape);
    else
        return 2;
    return done ? 0 : 1;
}

// out (query row, query col, query k, head, dim), contiguous = attention of q (the same axes) over the keys of k, v
// (key row, key col, key k, head, dim) in the box of `box` x `box` cells that begins at row_starts[query row],
// col_starts[query col] of the keys.
//
// `bits` as above. Heads are `dim` elements apart in q, k and v, tokens *_token elements, columns one cell of tokens,
// rows *_row tokens. visible: (key row, key col, key k), 0 keeps a key out; null: all are seen. A query that sees no
// key gives zeros. Returns 0; 1: out of memory; 2: a shape that this file does not handle; 3: starts that fall or whose
// boxes leave the keys.
int earthpress_boxes(int bits, const void* q, const void* k, const void* v, void* out, const int32_t* row_starts,
                     const int32_t* col_starts, const uint8_t* visible, int64_t box, int64_t q_rows, int64_t q_cols,
                     int64_t q_cell, int64_t k_rows, int64_t k_cols, int64_t k_cell, int64_t heads, int64_t dim,
                     int64_t q_row, int64_t q_token, int64_t k_row, int64_t k_token, int64_t v_row, int64_t v_token) {
    if (dim < 16 || dim > MAX_DIM || dim % 16 || box < 1 || (bits != 32 && bits != 16)) return 2;
    for (const int64_t cells : {q_rows, q_cols, k_rows, k_cols})
        if (cells < 1 || cells > MAX_CELLS) return 2;
    if (q_cell < 1 || k_cell < 1 || k_cols * k_cell > MAX_CELLS || MAX_GROUP_ROWS * q_row > INT32_MAX / 2 ||
        MAX_GROUP_ROWS * q_cols * q_cell > INT32_MAX / 2)
        return 2;
    if (!are_starts(row_starts, q_rows, box, k_rows) || !are_starts(col_starts, q_cols, box, k_cols)) return 3;
    const Boxes b{q_rows, q_cols, q_cell, k_rows, k_cols,  k_cell,  heads,      dim,        box,
                  q_row,  k_row,  v_row,  q_token, k_token, v_token, row_starts, col_starts, visible};
    const bool done =
        bits == 32
            ? attend_boxes<Single>(static_cast<const float*>(q), static_cast<const float*>(k),
                                   static_cast<const float*>(v), static_cast<float*>(out), b)
            : attend_boxes<Pair>(static_cast<const uint16_t*>(q), static_cast<const uint16_t*>(k),
                                 static_cast<const uint16_t*>(v), static_cast<uint16_t*>(out), b);
    return done ? 0 : 1;
}
}
