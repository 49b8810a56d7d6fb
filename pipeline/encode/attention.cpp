// Softmax attention of many independent windows on one CPU thread: rotary positions, scores, softmax and the weighted
// sum of values in one pass. A plain C interface, no headers of torch: `native.py` compiles it at first use.
//
// Per window and head: keys and values are packed once (rotated, converted, only those that are visible). Then, for
// V * LANES queries at a time and KEYS keys at a time:
//
//   scores   S[key][query] = K . Q      register tiles of ROWS keys x V vectors of queries
//   softmax  running maximum, 2^x by polynomial in float32, weights rounded to the storage type
//   values   O[d][query] += V . P       register tiles of ROWS dimensions x V vectors of queries
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
// Register tiles: 8 x 2 needs 16 + 2 + 1 of 32 registers, 4 x 3 needs 12 + 3 + 1 of 16.
constexpr int ROWS = LANES == 16 ? 8 : 4;
constexpr int VECTORS = LANES == 16 ? 2 : 3;
constexpr int KEYS = 128;  // per block: scores, keys and values of a block stay in the first-level cache
constexpr int GROUP = 8;   // packing handles 8 x 8 words at a time, whatever LANES is
constexpr int MAX_DIM = 128;
constexpr size_t ALIGN = 64;
static_assert(KEYS % GROUP == 0 && GROUP % ROWS == 0 && VECTORS * LANES % GROUP == 0, "tiles fill blocks");

using Floats = float __attribute__((vector_size(4 * LANES)));
using Words = uint32_t __attribute__((vector_size(4 * LANES)));
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

// Up to 8 rotated rows, transposed: `to[j * stride + i]` is word j of row i; missing rows are 0.
template <class M>
inline void pack_rows(const Rows<M>& rows, const int32_t* tokens, int count, uint32_t* to, size_t stride) {
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

// Values in groups of 8 dimensions: `to[(group * steps + j) * 8 + i]` is dimension group * 8 + i of step j.
template <class M>
void pack_values(const Rows<M>& rows, const int32_t* tokens, int count, uint32_t* to) {
    const int steps = (count + M::STEP - 1) / M::STEP;
    for (int j = 0; j < steps; j++) {
        const int first = j * M::STEP, second = first + M::STEP - 1;
        const auto* a = rows.base + tokens[first] * rows.token;
        const auto* b = second < count ? rows.base + tokens[second] * rows.token : nullptr;
        for (int d = 0; d < rows.dim; d += GROUP)
            store(to + (size_t)d * steps + (size_t)j * GROUP, M::join(M::words(a + d), b ? M::words(b + d) : Words8{}));
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
// `steps` words. `right` advances by GROUP words per step.
template <class M, int V>
inline void multiply(const void* left, const uint32_t* right, int steps, Floats (&sum)[ROWS][V]) {
    const auto* at = static_cast<const uint32_t*>(left);
    for (int j = 0; j < steps; j++, at += V * LANES, right += GROUP) {
        Words a[V];
        for (int v = 0; v < V; v++) hold(a[v] = load<Words>(at + v * LANES));
#pragma GCC unroll 8
        for (int r = 0; r < ROWS; r++) {
            const Words b = broadcast(right[r]);
            for (int v = 0; v < V; v++) sum[r][v] = M::dot(sum[r][v], a[v], b);
        }
    }
}

// Scores of a block of keys, and the running maximum of every query.
template <class M, int V>
STEP_OF_BLOCK void score(const uint32_t* q, const uint32_t* k, int words, int count, float* scores, Floats* top) {
    for (int row = 0; row < count; row += ROWS, scores += ROWS * V * LANES) {
        Floats sum[ROWS][V] = {};
        multiply<M, V>(q, k + (size_t)(row / GROUP * GROUP) * words + row % GROUP, words, sum);
#pragma GCC unroll 8
        for (int r = 0; r < ROWS; r++)
            for (int v = 0; v < V; v++) store(scores + (r * V + v) * LANES, sum[r][v]);
        for (int v = 0; v < V; v++) {
            Floats best = top[v];
#pragma GCC unroll 8
            for (int r = 0; r < ROWS; r++)
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

// Outputs of a block of keys: out = out * keep + values . weights; groups of values lie `group` words apart.
template <class M, int V>
STEP_OF_BLOCK void gather(const float* weights, const uint32_t* values, size_t group, int steps, int dim,
                          const Floats* keep, float* out) {
    for (int d = 0; d < dim; d += ROWS, out += ROWS * V * LANES) {
        Floats sum[ROWS][V] = {};
        multiply<M, V>(weights, values + (size_t)(d / GROUP) * group + d % GROUP, steps, sum);
#pragma GCC unroll 8
        for (int r = 0; r < ROWS; r++)
            for (int v = 0; v < V; v++) {
                float* at = out + (r * V + v) * LANES;
                store(at, load<Floats>(at) * keep[v] + sum[r][v]);
            }
    }
}

// ---- one head --------------------------------------------------------------------------------------------------------

// Working memory of a thread, kept between calls: mapping fresh pages would cost more than a small window's attention.
struct Scratch {
    uint32_t *keys, *values, *queries;
    float *scores, *out;
    int32_t *seen, *every;  // visible tokens; all queries

    ~Scratch() { std::free(memory); }

    bool reserve(int64_t query_count, int64_t key_count, int dim, int step) {
        const size_t words = dim / step, lanes = VECTORS * LANES, padded = (key_count + GROUP - 1) / GROUP * GROUP;
        const size_t parts[] = {padded * words, (padded / step + 1) * dim, lanes * words,      lanes * KEYS,
                                lanes * dim,    (size_t)key_count,         (size_t)query_count};
        size_t starts[7], bytes = 0;
        for (int i = 0; i < 7; i++) {
            starts[i] = bytes;
            bytes += (parts[i] * sizeof(uint32_t) + ALIGN - 1) / ALIGN * ALIGN;
        }
        if (bytes > size) {
            std::free(memory);
            memory = static_cast<char*>(std::aligned_alloc(ALIGN, bytes));
            size = memory ? bytes : 0;
            if (!memory) return false;
        }
        keys = at<uint32_t>(starts[0]), values = at<uint32_t>(starts[1]), queries = at<uint32_t>(starts[2]);
        scores = at<float>(starts[3]), out = at<float>(starts[4]);
        seen = at<int32_t>(starts[5]), every = at<int32_t>(starts[6]);
        return true;
    }

  private:
    char* memory = nullptr;
    size_t size = 0;

    template <class T>
    T* at(size_t byte) const {
        return reinterpret_cast<T*>(memory + byte);
    }
};

// Outputs, one row of `dim` per query, from out[d][query].
template <class M>
inline void write_rows(const float* out, int lanes, int count, int dim, typename M::Stored* to, int64_t stride) {
    for (int first = 0; first < count; first += GROUP)
        for (int d = 0; d < dim; d += GROUP) {
            Words8 block[GROUP];
            for (int i = 0; i < GROUP; i++) block[i] = load<Words8>(out + (size_t)(d + i) * lanes + first);
            transpose(block);
            for (int i = 0; i < GROUP && first + i < count; i++)
                M::write(to + (first + i) * stride + d, (Floats8)block[i]);
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
        gather<M, V>(scratch.scores, scratch.values + (size_t)first / M::STEP * GROUP, group,
                     (keys + M::STEP - 1) / M::STEP, dim, keep, scratch.out);
    }
    for (int v = 0; v < V; v++) total[v] = 1.0f / total[v];
    for (int d = 0; d < dim; d++)
        for (int v = 0; v < V; v++) {
            float* at = scratch.out + (size_t)(d * V + v) * LANES;
            store(at, load<Floats>(at) * total[v]);
        }
    write_rows<M>(scratch.out, V * LANES, count, dim, to, stride);
}

template <class M>
void attend_head(const Scratch& scratch, int key_count, const Rows<M>& q, int64_t queries, typename M::Stored* to,
                 int64_t stride) {
    for (int64_t first = 0; first < queries; first += VECTORS * LANES) {
        const int count = (int)(queries - first < VECTORS * LANES ? queries - first : VECTORS * LANES);
        const int32_t* tokens = scratch.every + first;
        auto* row = to + first * stride;
        if (count <= LANES)
            attend_block<M, 1>(scratch, key_count, q, tokens, count, row, stride);
        else if (count <= 2 * LANES)
            attend_block<M, 2>(scratch, key_count, q, tokens, count, row, stride);
        else
            attend_block<M, VECTORS>(scratch, key_count, q, tokens, count, row, stride);
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
    static thread_local Scratch scratch;
    const int dim = (int)shape.dim;
    const int64_t width = shape.heads * dim;
    if (!scratch.reserve(shape.queries, shape.keys, dim, M::STEP)) return false;
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
}
