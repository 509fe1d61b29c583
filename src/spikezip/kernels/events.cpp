// Sums of 8-bit weights times codes, spike by spike: a row is the row before it and the weights of what changed.
// See events.py.
//
// The changes of a row are listed pixel by pixel. A line of a convolution's window covers neighbouring pixels, so that
// an output adds up few contiguous runs of the list. Changes are taken in pairs, for 64 output channels at once, whose
// sums stay in registers: the weights of a pair are interleaved and multiplied and added in one instruction.
#include <cstdint>

#ifdef __AVX2__
#include <immintrin.h>

#include <algorithm>
#include <cstring>
#include <vector>

namespace {

constexpr int BLOCK_BITS = 6;
constexpr int BLOCK = 1 << BLOCK_BITS;  // output channels at a time: the bytes of two registers
constexpr int MOST = 256;          // levels that 16 bits can add up: 256 * 127 < 2^15
constexpr int64_t HELD = 1 << 19;  // changes that are listed before they are used

struct Shape {
    int64_t high, wide, channels;          // of the codes
    int64_t out_high, out_wide, outputs;   // of the sums
    int64_t kernel_high, kernel_wide, down, right, top, left;
};

struct Places {  // of the bits of a byte that are set
    uint8_t of[256][8] = {};
    Places() {
        for (int mask = 0; mask < 256; mask++)
            for (int bit = 0, n = 0; bit < 8; bit++)
                if (mask >> bit & 1) of[mask][n++] = uint8_t(bit);
    }
};
const Places places;

struct Changes {
    std::vector<int32_t> at;     // where its weights are, for a window that begins with the image's line
    std::vector<int8_t> levels;  // by how much it changed
    std::vector<int32_t> start;  // of each pixel's changes, an even number; behind each row's last pixel, where they end
    int64_t size = 0;

    void add(const uint8_t *now, const uint8_t *before, const Shape &s) {
        const int64_t line = s.wide * s.channels;
        const size_t needed = size_t(size + s.high * (line + s.wide) + 8);
        if (at.size() < needed) {
            at.resize(needed + HELD);
            levels.resize(needed + HELD);
        }
        start.resize(start.size() + s.high * s.wide + 1);
        int32_t *begin = start.data() + start.size() - (s.high * s.wide + 1);
        int32_t *const to = at.data();
        int8_t *const by = levels.data();
        int64_t n = size;  // not the member, which bytes written could be
        for (int64_t y = 0; y < s.high; y++, now += line, before += line)
            for (int64_t pixel = 0; pixel < line; pixel += s.channels) {
                *begin++ = int32_t(n);
                const int64_t first = n;
                for (int64_t c = pixel; c < pixel + s.channels; c += 8) {
                    const __m128i a = _mm_loadl_epi64(reinterpret_cast<const __m128i *>(now + c));
                    const __m128i b = _mm_loadl_epi64(reinterpret_cast<const __m128i *>(before + c));
                    const unsigned changed = ~unsigned(_mm_movemask_epi8(_mm_cmpeq_epi8(a, b))) & 255;
                    const __m128i which = _mm_loadl_epi64(reinterpret_cast<const __m128i *>(places.of[changed]));
                    const __m256i channel = _mm256_add_epi32(_mm256_cvtepu8_epi32(which), _mm256_set1_epi32(int32_t(c)));
                    _mm256_storeu_si256(reinterpret_cast<__m256i *>(to + n), _mm256_slli_epi32(channel, BLOCK_BITS));
                    _mm_storel_epi64(reinterpret_cast<__m128i *>(by + n), _mm_shuffle_epi8(_mm_sub_epi8(a, b), which));
                    n += __builtin_popcount(changed);
                }
                if ((n - first) & 1) {
                    to[n] = int32_t(pixel << BLOCK_BITS);
                    by[n++] = 0;
                }
            }
        *begin = int32_t(n);
        size = n;
    }
};

// Adds to one place's sums of the row before: up to BLOCK of them, from a window of the changes' image.
void add_up(float *to, const float *from, int64_t outputs, const uint8_t *weights, const Shape &s, int64_t y, int64_t x,
            const int32_t *at, const int8_t *levels, const int32_t *start, int32_t most) {
    const __m256i offset = _mm256_set1_epi8(-128), none = _mm256_setzero_si256();  // weights are stored plus 128
    const int64_t left = std::min(std::max(x, int64_t(0)), s.wide), right = std::max(left, std::min(x + s.kernel_wide, s.wide));
    __m256i shift = none, sum0 = none, sum1 = none, sum2 = none, sum3 = none;
    auto finish = [=](float *to, const float *from, __m256i shift, __m256i sum0, __m256i sum1, __m256i sum2, __m256i sum3) {
        alignas(32) int16_t sums[BLOCK];
        __m256i *const parts = reinterpret_cast<__m256i *>(sums);
        parts[0] = _mm256_sub_epi16(sum0, shift);
        parts[1] = _mm256_sub_epi16(sum1, shift);
        parts[2] = _mm256_sub_epi16(sum2, shift);
        parts[3] = _mm256_sub_epi16(sum3, shift);
        if (outputs == BLOCK) for (int64_t i = 0; i < BLOCK; i++) to[i] = from[i] + sums[i];
        else for (int64_t i = 0; i < outputs; i++) to[i] = from[i] + sums[i];
    };
    const int32_t fit = (MOST / most) & ~1;  // changes that 16 bits can add up
    int32_t room = fit;
    for (int64_t line = std::max(y, int64_t(0)); line < std::min(y + s.kernel_high, s.high); line++) {
        const uint8_t *const base = weights + ((line - y) * s.kernel_wide - x) * s.channels * BLOCK;
        const int32_t end = start[line * s.wide + right];
        for (int32_t i = start[line * s.wide + left]; i < end;) {
            const int32_t stop = std::min(end, i + room);
            room -= stop - i;
            for (; i < stop; i += 2) {
                int16_t both;
                memcpy(&both, levels + i, 2);
                const __m256i pair = _mm256_set1_epi16(both);
                const __m256i *const first = reinterpret_cast<const __m256i *>(base + at[i]);
                const __m256i *const second = reinterpret_cast<const __m256i *>(base + at[i + 1]);
                const __m256i a = _mm256_loadu_si256(first), b = _mm256_loadu_si256(second);
                const __m256i c = _mm256_loadu_si256(first + 1), d = _mm256_loadu_si256(second + 1);
                shift = _mm256_add_epi16(shift, _mm256_maddubs_epi16(offset, pair));
                sum0 = _mm256_add_epi16(sum0, _mm256_maddubs_epi16(_mm256_unpacklo_epi8(a, b), pair));
                sum1 = _mm256_add_epi16(sum1, _mm256_maddubs_epi16(_mm256_unpackhi_epi8(a, b), pair));
                sum2 = _mm256_add_epi16(sum2, _mm256_maddubs_epi16(_mm256_unpacklo_epi8(c, d), pair));
                sum3 = _mm256_add_epi16(sum3, _mm256_maddubs_epi16(_mm256_unpackhi_epi8(c, d), pair));
            }
            if (room == 0) {
                finish(to, from, shift, sum0, sum1, sum2, sum3);
                shift = sum0 = sum1 = sum2 = sum3 = none;
                from = to;
                room = fit;
            }
        }
    }
    finish(to, from, shift, sum0, sum1, sum2, sum3);
}

}  // namespace

// In which order rows follow one another, what lies before each (-1: nothing), how many neurons changed, and by how many
// levels at most. Returns how many rows there are; -1 where one holds for several images, or comes back.
extern "C" int64_t spikezip_changes(const uint8_t *rows, const int64_t *map, int64_t steps, int64_t images, int64_t neurons,
                                    int32_t zero, int64_t *order, int64_t *before, int64_t *changed, int64_t *most) {
    const std::vector<uint8_t> nothing(neurons, uint8_t(zero));
    std::vector<bool> seen(steps * images);
    int64_t count = 0;
    for (int64_t b = 0; b < images; b++)
        for (int64_t t = 0; t < steps; t++) {
            const int64_t row = map[t * images + b], last = t ? map[(t - 1) * images + b] : -1;
            if (row == last) continue;
            if (row >= steps * images || seen[row]) return -1;
            seen[row] = true;
            const uint8_t *const x = rows + row * neurons, *const y = t ? rows + last * neurons : nothing.data();
            int64_t total = 0;
            uint8_t greatest = 1;
            for (int64_t start = 0; start < neurons; start += 128) {  // so many fit a byte: these loops vectorise
                const int64_t end = std::min(start + 128, neurons);
                uint8_t some = 0;
                for (int64_t i = start; i < end; i++) {
                    const uint8_t way = x[i] > y[i] ? uint8_t(x[i] - y[i]) : uint8_t(y[i] - x[i]);
                    greatest = std::max(greatest, way);
                    some = uint8_t(some + (way != 0));
                }
                total += some;
            }
            order[count] = row;
            before[count] = last;
            changed[count] = total;
            most[count++] = greatest;
        }
    return count;
}

// The sums of some rows; those of the rows before them are there, or come before them.
extern "C" void spikezip_events(const Shape *shape, const uint8_t *weights, const uint8_t *rows, int32_t zero,
                                const int64_t *order, const int64_t *before, const int64_t *most, int64_t count, float *sums) {
    const Shape s = *shape;
    const int64_t neurons = s.high * s.wide * s.channels, row_of_sums = s.out_high * s.out_wide * s.outputs;
    const std::vector<uint8_t> nothing(neurons, uint8_t(zero));
    const std::vector<float> noughts(BLOCK);
    Changes changes;
    for (int64_t first = 0, end = 0; first < count; first = end) {
        changes.size = 0;
        changes.start.clear();
        for (; end < count && changes.size < HELD; end++)
            changes.add(rows + order[end] * neurons, before[end] < 0 ? nothing.data() : rows + before[end] * neurons, s);
        for (int64_t o = 0; o < s.outputs; o += BLOCK) {
            const uint8_t *const block = weights + o * s.kernel_high * s.kernel_wide * s.channels;
            const int32_t *start = changes.start.data();
            for (int64_t r = first; r < end; r++, start += s.high * s.wide + 1) {
                float *to = sums + order[r] * row_of_sums + o;
                const float *from = before[r] < 0 ? noughts.data() : sums + before[r] * row_of_sums + o;
                for (int64_t y = 0; y < s.out_high; y++)
                    for (int64_t x = 0; x < s.out_wide; x++) {
                        add_up(to, from, std::min<int64_t>(BLOCK, s.outputs - o), block, s, y * s.down - s.top,
                               x * s.right - s.left, changes.at.data(), changes.levels.data(), start, int32_t(most[r]));
                        to += s.outputs;
                        from += before[r] < 0 ? 0 : s.outputs;
                    }
            }
        }
    }
}
#endif
