// Sums of 8-bit weights times codes, spike by spike, on processors without dot products of bytes: a row is the row before
// it and the weights of what changed. See events.py.
//
// The changes of a row are listed pixel by pixel. A line of a convolution's window covers neighbouring pixels, so that
// an output adds up few contiguous runs of the list. Changes are taken in pairs, for 64 output channels at once (32 or 16
// where a layer has no more), whose sums stay in registers: the weights of a pair are interleaved and multiplied and added
// in one instruction.
//
// Weights are read for every change, so they have to lie in the fastest cache. A segment is as much of the window as fits
// there: a line of it, or one pixel, or some channels of one; all outputs of a band add up one segment, then the next.
#if defined(__AVX2__) && !(defined(__AVX512BW__) && defined(__AVX512VL__) && defined(__AVX512VNNI__))
#include <cstdint>
constexpr int MOST = 1;  // row at a time
constexpr int64_t COST[] = {0, 1}, FIXED = 0, OF_ROW = 0;
#include "events.h"

namespace {

// BITS, of all templates: 2^BITS output channels at a time, whose weights of one change fill two registers, one or half.
constexpr int FIT = 256;           // levels that 16 bits can add up: 256 * 127 < 2^15
constexpr int64_t HELD = 1 << 19;  // changes that are listed before they are used
constexpr int64_t FAST = 1 << 15;  // bytes of weights that stay in the fastest cache
constexpr int64_t BAND = 1 << 6;   // outputs whose sums are held while segment after segment is added

// Writes down those of eight neurons that changed; returns where the list ends then.
template <int BITS>
inline int64_t list(uint32_t *at, int8_t *levels, int64_t n, unsigned changed, int64_t channel, const int8_t *by) {
    const __m128i which = load8(places.of[changed]);
    const __m256i place = _mm256_add_epi32(_mm256_cvtepu8_epi32(which), _mm256_set1_epi32(int32_t(channel)));
    _mm256_storeu_si256(reinterpret_cast<__m256i *>(at + n), _mm256_slli_epi32(place, BITS));
    const __m128i some = load8(by);
    _mm_storel_epi64(reinterpret_cast<__m128i *>(levels + n), _mm_shuffle_epi8(some, which));
    return n + __builtin_popcount(changed);
}

// How far bytes rose together.
inline __m128i rise(__m256i now, __m256i before) {
    const __m256i none = _mm256_setzero_si256();
    const __m256i by = _mm256_sub_epi32(_mm256_sad_epu8(now, none), _mm256_sad_epu8(before, none));
    const __m128i two = _mm_add_epi32(_mm256_castsi256_si128(by), _mm256_extracti128_si256(by, 1));
    return _mm_add_epi32(two, _mm_unpackhi_epi64(two, two));
}

// By how much bytes differ.
inline __m256i distance(__m256i a, __m256i b) { return _mm256_or_si256(_mm256_subs_epu8(a, b), _mm256_subs_epu8(b, a)); }

struct Changes {
    std::vector<uint32_t> at;    // where its weights are, for a window that begins with the image's line
    std::vector<int8_t> levels;  // by how much it changed
    std::vector<int32_t> start;  // of the changes of each part of a pixel's channels, an even number; then of the next row
    std::vector<int32_t> total;  // by how much everything before `start` changed
    std::vector<int32_t> fit;    // of each row, how many changes 16 bits can add up: an even number
    int64_t size = 0;
    int32_t sum = 0;

    template <int BITS>
    void add(const uint8_t *now, const uint8_t *before, const Shape &s, int64_t part) {
        const int64_t line = s.wide * s.channels, parts = s.high * line / part;
        const size_t needed = size_t(size + s.high * line + parts + 8);
        if (at.size() < needed) {
            at.resize(needed + HELD);
            levels.resize(needed + HELD);
        }
        const size_t known = start.size();
        start.resize(known + parts + 1);
        total.resize(known + parts + 1);
        int32_t *begin = start.data() + known, *so_far = total.data() + known;
        uint32_t *const to = at.data();
        int8_t *const by = levels.data();
        int64_t n = size;  // not the member, which bytes written could be
        __m128i risen = _mm_setzero_si128();
        __m256i farthest = _mm256_set1_epi8(1);
        for (int64_t y = 0; y < s.high; y++, now += line, before += line)
            for (int64_t first = 0; first < line; first += part) {
                const int64_t known = n;
                *begin++ = int32_t(n);
                *so_far++ = sum + _mm_cvtsi128_si32(risen);
                int64_t c = first;
                for (; c + 32 <= first + part; c += 32) {
                    const __m256i a = load32(now + c);
                    const __m256i b = load32(before + c);
                    unsigned changed = ~unsigned(_mm256_movemask_epi8(_mm256_cmpeq_epi8(a, b)));
                    if (!changed) continue;
                    alignas(32) int8_t by_how_much[32];
                    _mm256_store_si256(reinterpret_cast<__m256i *>(by_how_much), _mm256_sub_epi8(a, b));
                    risen = _mm_add_epi32(risen, rise(a, b));
                    farthest = _mm256_max_epu8(farthest, distance(a, b));
#pragma GCC unroll 4
                    for (int k = 0; k < 32; k += 8, changed >>= 8)
                        n = list<BITS>(to, by, n, changed & 255, c + k, by_how_much + k);
                }
                for (; c < first + part; c += 8) {
                    const __m128i a = load8(now + c);
                    const __m128i b = load8(before + c);
                    const unsigned changed = ~unsigned(_mm_movemask_epi8(_mm_cmpeq_epi8(a, b))) & 255;
                    int8_t by_how_much[8];
                    _mm_storel_epi64(reinterpret_cast<__m128i *>(by_how_much), _mm_sub_epi8(a, b));
                    const __m256i now_too = _mm256_zextsi128_si256(a), before_too = _mm256_zextsi128_si256(b);
                    risen = _mm_add_epi32(risen, rise(now_too, before_too));
                    farthest = _mm256_max_epu8(farthest, distance(now_too, before_too));
                    n = list<BITS>(to, by, n, changed, c, by_how_much);
                }
                if ((n - known) & 1) {
                    to[n] = uint32_t(first << BITS);
                    by[n++] = 0;
                }
            }
        sum += _mm_cvtsi128_si32(risen);
        *begin = int32_t(n);
        *so_far = sum;
        size = n;
        uint8_t most[32];
        _mm256_storeu_si256(reinterpret_cast<__m256i *>(most), farthest);
        fit.push_back(FIT / *std::max_element(most, most + 32) & ~1);
    }
};

inline void add_eight(float *sums, __m128i more) {
    const __m256 wide = _mm256_cvtepi32_ps(_mm256_cvtepi16_epi32(more));
    _mm256_storeu_ps(sums, _mm256_add_ps(_mm256_loadu_ps(sums), wide));
}

// Adds the weights of at most as many changes as 16 bits can add up; `total` is by how much they changed.
template <int BITS>
inline void add_few(float *sums, const uint8_t *weights, const uint32_t *at, const int8_t *levels, int64_t i, int64_t end,
                    int32_t total) {
    constexpr int REGISTERS = BITS == 6 ? 2 : 1;
    __m256i sum[2 * REGISTERS];
#pragma GCC unroll 4
    for (int k = 0; k < 2 * REGISTERS; k++) sum[k] = _mm256_set1_epi16(int16_t(-128 * total));  // weights are stored plus 128
    for (; i < end; i += 2) {
        int16_t both;
        memcpy(&both, levels + i, 2);
        const __m256i pair = _mm256_set1_epi16(both);
        const uint8_t *const first = weights + at[i], *const second = weights + at[i + 1];
#pragma GCC unroll 2
        for (int k = 0; k < REGISTERS; k++) {
            const __m256i a = _mm256_loadu_si256(reinterpret_cast<const __m256i *>(first) + k);
            const __m256i b = _mm256_loadu_si256(reinterpret_cast<const __m256i *>(second) + k);
            sum[2 * k] = _mm256_add_epi16(sum[2 * k], _mm256_maddubs_epi16(_mm256_unpacklo_epi8(a, b), pair));
            sum[2 * k + 1] = _mm256_add_epi16(sum[2 * k + 1], _mm256_maddubs_epi16(_mm256_unpackhi_epi8(a, b), pair));
        }
    }
#pragma GCC unroll 4
    for (int k = 0; k < 2 * REGISTERS; k++, sums += 16) {
        add_eight(sums, _mm256_castsi256_si128(sum[k]));
        add_eight(sums + 8, _mm256_extracti128_si256(sum[k], 1));
    }
}

template <>
inline void add_few<4>(float *sums, const uint8_t *weights, const uint32_t *at, const int8_t *levels, int64_t i, int64_t end,
                       int32_t total) {
    __m256i sum = _mm256_set1_epi16(int16_t(-128 * total));
    for (; i < end; i += 2) {
        int16_t both;
        memcpy(&both, levels + i, 2);
        const __m128i a = load16(weights + at[i]);
        const __m128i b = load16(weights + at[i + 1]);
        const __m256i pairs = _mm256_set_m128i(_mm_unpackhi_epi8(a, b), _mm_unpacklo_epi8(a, b));
        sum = _mm256_add_epi16(sum, _mm256_maddubs_epi16(pairs, _mm256_set1_epi16(both)));
    }
    add_eight(sums, _mm256_castsi256_si128(sum));
    add_eight(sums + 8, _mm256_extracti128_si256(sum, 1));
}

struct Segment {  // of a window
    int64_t line;         // of the window
    int64_t left, right;  // pixels of the window's line; right is the first behind
    int64_t part;         // of the channels
};

// How many channels of a pixel fit the fastest cache.
int64_t part_of(const Shape &s, int64_t block) {
    int64_t part = s.channels;
    while (part * block > FAST && part % 16 == 0) part /= 2;
    return part;
}

std::vector<Segment> segments_of(const Shape &s, int64_t part, int64_t block) {
    std::vector<Segment> found;
    const int64_t parts = s.channels / part;
    const int64_t pixels = parts > 1 ? 1 : std::max<int64_t>(1, std::min(s.kernel_wide, FAST / (s.channels * block)));
    for (int64_t line = 0; line < s.kernel_high; line++)
        for (int64_t left = 0; left < s.kernel_wide; left += pixels)
            for (int64_t which = 0; which < parts; which++)
                found.push_back({line, left, std::min(left + pixels, s.kernel_wide), which});
    return found;
}

// Adds what a segment gives to the sums of one line of outputs.
template <int BITS>
void add_line(float *sums, const uint8_t *weights, const Shape &s, const Segment &segment, int64_t parts, int64_t y,
              const Changes &changes, const int32_t *start, const int32_t *total, int32_t fit) {
    const int64_t line = y * s.down - s.top + segment.line;
    if (line < 0 || line >= s.high) return;
    const uint32_t *const at = changes.at.data();
    const int8_t *const levels = changes.levels.data();
    for (int64_t out = 0, x = -s.left; out < s.out_wide; out++, x += s.right, sums += 1 << BITS) {
        const int64_t left = std::max(x + segment.left, int64_t(0)), right = std::min(x + segment.right, s.wide);
        if (left >= right) continue;
        const int64_t first = (line * s.wide + left) * parts + segment.part;
        const int64_t last = parts > 1 ? first + 1 : first + right - left;
        int32_t i = start[first];
        const int32_t end = start[last];
        const uint8_t *const base = weights + (segment.line * s.kernel_wide - x) * s.channels * (1 << BITS);
        if (i == end) continue;
        if (end - i <= fit) {
            add_few<BITS>(sums, base, at, levels, i, end, total[last] - total[first]);
            continue;
        }
        for (int32_t stop; i < end; i = stop) {
            stop = std::min(end, i + fit);
            int32_t some = 0;
            for (int32_t k = i; k < stop; k++) some += levels[k];
            add_few<BITS>(sums, base, at, levels, i, stop, some);
        }
    }
}

// One line of outputs: that of the row before, and what changed.
void write_line(float *__restrict to, const float *__restrict from, const float *__restrict more, const Shape &s,
                int64_t outputs, int64_t block) {
    for (int64_t x = 0; x < s.out_wide; x++, to += s.outputs, more += block) {
        if (!from) {
            memcpy(to, more, outputs * sizeof(float));
            continue;
        }
        for (int64_t i = 0; i < outputs; i++) to[i] = from[i] + more[i];
        from += s.outputs;
    }
}

// The rows to compute: where each is in the order of all, and what lies before it; -1 for nothing.
struct Order {
    const int64_t *all, *first, *before;
    int64_t row(int64_t r) const { return all[first[r]]; }
};

// The sums of rows from `first` on, whose changes are listed, for some output channels from `o` on.
template <int BITS>
void add_rows(float *sums, const uint8_t *weights, const Shape &s, const std::vector<Segment> &segments, int64_t part,
              const Changes &changes, const Order &order, int64_t first, int64_t end, int64_t o, std::vector<float> &held) {
    constexpr int64_t block = 1 << BITS;
    const int64_t parts = s.channels / part, cells = s.high * s.wide * parts + 1, size = s.out_wide * block;
    const int64_t lines = (end - first) * s.out_high, outputs = std::min(block, s.outputs - o);
    const int64_t row_of_sums = s.out_high * s.out_wide * s.outputs, band = int64_t(held.size()) / size;
    for (int64_t top = 0; top < lines; top += band) {
        const int64_t bottom = std::min(lines, top + band);
        std::fill(held.begin(), held.end(), 0.0f);
        for (const Segment &segment : segments)
            for (int64_t l = top; l < bottom; l++) {
                const int64_t r = l / s.out_high;
                add_line<BITS>(held.data() + (l - top) * size, weights, s, segment, parts, l % s.out_high, changes,
                               changes.start.data() + r * cells, changes.total.data() + r * cells, changes.fit[r]);
            }
        for (int64_t l = top; l < bottom; l++) {
            const int64_t r = first + l / s.out_high, line = l % s.out_high * s.out_wide * s.outputs + o;
            const float *from = order.before[r] < 0 ? nullptr : sums + order.before[r] * row_of_sums + line;
            write_line(sums + order.row(r) * row_of_sums + line, from, held.data() + (l - top) * size, s, outputs, block);
        }
    }
}

template <int BITS>
void events(const Shape &s, const uint8_t *weights, const uint8_t *rows, int32_t zero, const Order &order, int64_t count,
            float *sums) {
    constexpr int64_t block = 1 << BITS;
    const int64_t neurons = s.high * s.wide * s.channels, part = part_of(s, block);
    const std::vector<Segment> segments = segments_of(s, part, block);
    const std::vector<uint8_t> nothing(neurons, uint8_t(zero));
    std::vector<float> held(std::max<int64_t>(1, BAND / s.out_wide) * s.out_wide * block);  // whole lines
    static thread_local Changes changes;  // of a call before: to make room anew would write zeros to all of it
    for (int64_t first = 0, end = 0; first < count; first = end) {
        changes.size = 0;
        changes.sum = 0;
        changes.start.clear();
        changes.total.clear();
        changes.fit.clear();
        for (; end < count && changes.size < HELD; end++) {
            const uint8_t *const before = order.before[end] < 0 ? nothing.data() : rows + order.before[end] * neurons;
            changes.add<BITS>(rows + order.row(end) * neurons, before, s, part);
        }
        for (int64_t o = 0; o < s.outputs; o += block) {
            const uint8_t *const some = weights + o * s.kernel_high * s.kernel_wide * s.channels;
            add_rows<BITS>(sums, some, s, segments, part, changes, order, first, end, o, held);
        }
    }
}

}  // namespace

// How many neurons' weights are interleaved, and how many times 128 bits a register has.
extern "C" int32_t spikezip_together() { return 2; }

// The sums of some groups, each of one row: its place in the order, 1, and the one before; whose sums are there, or come
// before. Weights, plus 128, are packed for `block` output channels: 16, 32 or 64.
extern "C" void spikezip_events(const Shape *shape, const uint8_t *weights, int32_t block, const uint8_t *rows, int32_t zero,
                                const int64_t *order, const int64_t *groups, int64_t count, float *sums) {
    const auto some = block == 16 ? events<4> : block == 32 ? events<5> : events<6>;
    some(*shape, weights, rows, zero, {order, groups, groups + 2 * count}, count, sums);
}
#endif
