// Sums of 8-bit weights times codes, spike by spike, on processors with dot products of bytes (AVX-512 VNNI): those of the
// row before, and what the neurons that changed add to it. See events.py.
//
// A few rows that follow one another are taken together. The neurons that change in any of them are listed, pixel by
// pixel: where their weights lie, and their codes in each row and in the one before. For every output and some of its
// channels, the listed neurons of its window are gone through once, four at a time: their weights are interleaved and
// multiplied with the codes of every row, whose sums stay in registers. A neuron that does not change costs nothing, and
// to find and to interleave the weights of one that does is shared by the rows.
#if defined(__AVX512BW__) && defined(__AVX512VL__) && defined(__AVX512VNNI__)
#define MOST 6  // rows whose sums registers hold
#define BEFORE 1
#include "events.h"

namespace {

constexpr int64_t LISTED = 1 << 16;  // neurons in which changes are looked for before they are used,
constexpr int AT_ONCE = 16;          // and groups of rows

// -- one output of some rows: BITS, of all templates, for 2^BITS of its channels -------------------------------------

// The weights of four neurons: in each 32 bits those of one output channel.
inline void interleave(const int8_t *a, const int8_t *b, const int8_t *c, const int8_t *d, __m512i (&found)[4]) {
    const __m512i first = _mm512_loadu_si512(a), second = _mm512_loadu_si512(b);
    const __m512i third = _mm512_loadu_si512(c), fourth = _mm512_loadu_si512(d);
    const __m512i low = _mm512_unpacklo_epi8(first, second), high = _mm512_unpackhi_epi8(first, second);
    const __m512i low_too = _mm512_unpacklo_epi8(third, fourth), high_too = _mm512_unpackhi_epi8(third, fourth);
    found[0] = _mm512_unpacklo_epi16(low, low_too);
    found[1] = _mm512_unpackhi_epi16(low, low_too);
    found[2] = _mm512_unpacklo_epi16(high, high_too);
    found[3] = _mm512_unpackhi_epi16(high, high_too);
}

inline void interleave(const int8_t *a, const int8_t *b, const int8_t *c, const int8_t *d, __m512i (&found)[2]) {
    const auto both = [](__m256i x, __m256i y) { return _mm512_inserti64x4(_mm512_castsi256_si512(x), y, 1); };
    const __m256i first = load32(a), second = load32(b), third = load32(c), fourth = load32(d);
    const __m256i low = _mm256_unpacklo_epi8(first, second), high = _mm256_unpackhi_epi8(first, second);
    const __m256i low_too = _mm256_unpacklo_epi8(third, fourth), high_too = _mm256_unpackhi_epi8(third, fourth);
    found[0] = both(_mm256_unpacklo_epi16(low, low_too), _mm256_unpackhi_epi16(low, low_too));
    found[1] = both(_mm256_unpacklo_epi16(high, high_too), _mm256_unpackhi_epi16(high, high_too));
}

inline void interleave(const int8_t *a, const int8_t *b, const int8_t *c, const int8_t *d, __m512i (&found)[1]) {
    const __m128i first = load16(a), second = load16(b), third = load16(c), fourth = load16(d);
    const __m128i low = _mm_unpacklo_epi8(first, second), high = _mm_unpackhi_epi8(first, second);
    const __m128i low_too = _mm_unpacklo_epi8(third, fourth), high_too = _mm_unpackhi_epi8(third, fourth);
    const __m256i ahead = _mm256_set_m128i(_mm_unpackhi_epi16(low, low_too), _mm_unpacklo_epi16(low, low_too));
    const __m256i behind = _mm256_set_m128i(_mm_unpackhi_epi16(high, high_too), _mm_unpacklo_epi16(high, high_too));
    found[0] = _mm512_inserti64x4(_mm512_castsi256_si512(ahead), behind, 1);
}

template <int BITS, int ROWS>
struct Sums {
    static constexpr int PARTS = 1 << (BITS - 4);
    __m512i of[ROWS][PARTS];

    Sums() {
        for (auto &row : of)
            for (auto &part : row) part = _mm512_setzero_si512();
    }

    // Four neurons: where their weights are, and their codes in each row.
    void add(const int8_t *weights, const uint32_t *at, const uint8_t *const (&codes)[ROWS], int64_t i) {
        __m512i four[PARTS];
        interleave(weights + at[i], weights + at[i + 1], weights + at[i + 2], weights + at[i + 3], four);
#pragma GCC unroll 8
        for (int r = 0; r < ROWS; r++) {
            int32_t those;
            memcpy(&those, codes[r] + i, 4);
            const __m512i all = _mm512_set1_epi32(those);
#pragma GCC unroll 4
            for (int p = 0; p < PARTS; p++) {  // by its name: GCC 12 copies the sums to other registers, and runs out of them
                __m512i sum = of[r][p];
                asm("vpdpbusd %2, %1, %0" : "+v"(sum) : "v"(all), "v"(four[p]));
                of[r][p] = sum;
            }
        }
    }

    void write(int32_t *to) {
        for (auto &row : of)
            for (auto &part : row) {
                _mm512_storeu_si512(to, part);
                to += 16;
            }
    }
};

// -- which neurons change --------------------------------------------------------------------------------------------

struct Changes {
    std::vector<uint32_t> at;          // where the weights of each are, for a window that begins with the image's line
    std::vector<uint8_t> codes[MOST];  // of each, in each row
    std::vector<int32_t> start;        // of each pixel's, a multiple of four

    // With the codes of the row before as the first if `also_before`.
    template <int BITS>
    void list(const Group &group, bool also_before, const Shape &s) {
        const int64_t pixels = s.high * s.wide;
        const size_t most = size_t(pixels * (s.channels + 3) + 64);
        if (at.size() < most) {
            at.resize(most);
            for (auto &some : codes) some.resize(most);
        }
        start.resize(pixels + 1);
        int64_t n = 0;
        for (int64_t pixel = 0; pixel < pixels; pixel++) {
            start[pixel] = int32_t(n);
            const uint32_t place = uint32_t(pixel % s.wide * s.channels);
            n = list_pixel<BITS>(group, also_before, pixel * s.channels, s.channels, place, n);
            for (; n & 3; n++) {  // neurons that say nothing
                at[n] = place << BITS;
                for (auto &some : codes) some[n] = 0;
            }
        }
        start[pixels] = int32_t(n);
    }

#ifdef __AVX512VBMI2__
    template <int BITS>
    int64_t list_pixel(const Group &group, bool also_before, int64_t from, int64_t channels, uint32_t place, int64_t n) {
        alignas(64) uint8_t numbers[64];
        for (int i = 0; i < 64; i++) numbers[i] = uint8_t(i);
        for (int64_t c = 0; c < channels; c += 64, from += 64, place += 64) {
            const __mmask64 there = channels - c >= 64 ? ~uint64_t(0) : (uint64_t(1) << (channels - c)) - 1;
            const __m512i before = _mm512_maskz_loadu_epi8(there, group.before + from);
            __m512i differs = _mm512_setzero_si512(), row[MOST];
            for (int r = 0; r < group.count; r++) {
                row[r] = _mm512_maskz_loadu_epi8(there, group.rows[r] + from);
                differs = _mm512_or_si512(differs, _mm512_xor_si512(row[r], before));
            }
            const __mmask64 changed = _mm512_test_epi8_mask(differs, differs);
            if (also_before) _mm512_storeu_si512(codes[0].data() + n, _mm512_maskz_compress_epi8(changed, before));
            for (int r = 0; r < group.count; r++)
                _mm512_storeu_si512(codes[also_before + r].data() + n, _mm512_maskz_compress_epi8(changed, row[r]));
            alignas(64) uint8_t which[64];
            _mm512_store_si512(which, _mm512_maskz_compress_epi8(changed, _mm512_load_si512(numbers)));
            for (int k = 0; k < 64; k += 16) {
                const __m512i some = _mm512_cvtepu8_epi32(load16(which + k));
                const __m512i all = _mm512_add_epi32(some, _mm512_set1_epi32(int32_t(place)));
                _mm512_storeu_si512(at.data() + n + k, _mm512_slli_epi32(all, BITS));
            }
            n += __builtin_popcountll(changed);
        }
        return n;
    }
#else
    template <int BITS>
    int64_t list_pixel(const Group &group, bool also_before, int64_t from, int64_t channels, uint32_t place, int64_t n) {
        for (int64_t c = 0; c < channels; c += 8, from += 8, place += 8) {
            const __m128i before = load8(group.before + from);
            __m128i differs = _mm_setzero_si128(), row[MOST];
            for (int r = 0; r < group.count; r++) {
                row[r] = load8(group.rows[r] + from);
                differs = _mm_or_si128(differs, _mm_xor_si128(row[r], before));
            }
            const unsigned same = unsigned(_mm_movemask_epi8(_mm_cmpeq_epi8(differs, _mm_setzero_si128())));
            const unsigned changed = ~same & 255;
            if (!changed) continue;
            const __m128i which = load8(places.of[changed]);
            const auto keep = [&](int r, __m128i row) {
                _mm_storel_epi64(reinterpret_cast<__m128i *>(codes[r].data() + n), _mm_shuffle_epi8(row, which));
            };
            if (also_before) keep(0, before);
            for (int r = 0; r < group.count; r++) keep(also_before + r, row[r]);
            const __m256i all = _mm256_add_epi32(_mm256_cvtepu8_epi32(which), _mm256_set1_epi32(int32_t(place)));
            _mm256_storeu_si256(reinterpret_cast<__m256i *>(at.data() + n), _mm256_slli_epi32(all, BITS));
            n += __builtin_popcount(changed);
        }
        return n;
    }
#endif
};

// -- the sums of a group ---------------------------------------------------------------------------------------------

struct Output {
    float *rows[MOST];
    const float *before;  // nullptr where there was nothing
    bool also_before;     // whether its codes are listed, as the first
    int count;            // of the rows that are listed
};

// For output channels from `o` on. Not to be inlined: compilers would keep other loops' variables in its registers.
template <int BITS, int ROWS>
__attribute__((noinline)) void add_up(const Shape &s, const int8_t *weights, const Changes &changes, const Output &output,
                                      int64_t o) {
    constexpr int64_t block = 1 << BITS;
    const int64_t outputs = std::min(block, s.outputs - o);
    const bool also_before = output.also_before;
    const uint8_t *codes[ROWS];
    for (int r = 0; r < ROWS; r++) codes[r] = changes.codes[r].data();
    int64_t place = o;
    for (int64_t y = -s.top; y < s.out_high * s.down - s.top; y += s.down)
        for (int64_t x = -s.left; x < s.out_wide * s.right - s.left; x += s.right, place += s.outputs) {
            Sums<BITS, ROWS> sums;
            const int64_t left = std::max(x, int64_t(0)), right = std::min(x + s.kernel_wide, s.wide);
            const int64_t last = std::min(y + s.kernel_high, s.high);
            for (int64_t line = std::max(y, int64_t(0)); line < last && left < right; line++) {
                const int8_t *const some = weights + ((line - y) * s.kernel_wide - x) * s.channels * block;
                const int64_t end = changes.start[line * s.wide + right];
                for (int64_t i = changes.start[line * s.wide + left]; i < end; i += 4)
                    sums.add(some, changes.at.data(), codes, i);
            }
            alignas(64) int32_t found[ROWS][block];
            sums.write(found[0]);
            for (int r = also_before; r < ROWS; r++) {
                float *const to = output.rows[r - also_before] + place;
                const float *const from = output.before ? output.before + place : nullptr;
                for (int64_t i = 0; i < outputs; i++) {
                    const float more = float(found[r][i] - (also_before ? found[0][i] : 0));
                    to[i] = from ? from[i] + more : more;
                }
            }
        }
}

template <int BITS, int ROWS = MOST>
void add_up_rows(const Shape &s, const int8_t *weights, const Changes &changes, const Output &output, int64_t o) {
    if (output.count == ROWS) return add_up<BITS, ROWS>(s, weights, changes, output, o);
    if constexpr (ROWS > 1) add_up_rows<BITS, ROWS - 1>(s, weights, changes, output, o);
}

// Several groups are listed before their sums are added up, for some output channels of all and then for the next:
// weights stay in a fast cache.
template <int BITS>
void events(const Shape &s, const int8_t *weights, const uint8_t *rows, int32_t zero, const int64_t *order,
            const int64_t *groups, int64_t count, float *sums) {
    const int64_t neurons = s.high * s.wide * s.channels, size = s.out_high * s.out_wide * s.outputs;
    const std::vector<uint8_t> nothing(neurons, uint8_t(zero));
    static thread_local Changes changes[AT_ONCE];  // of a call before: to make room anew would write zeros to it
    Output outputs[AT_ONCE];
    const int64_t at_once = std::max<int64_t>(1, std::min<int64_t>(AT_ONCE, LISTED / neurons));
    for (int64_t first = 0; first < count; first += at_once) {
        const int64_t some = std::min(at_once, count - first);
        for (int64_t k = 0; k < some; k++) {
            const int64_t begin = groups[first + k], last = groups[2 * count + first + k];
            Group group{last < 0 ? nothing.data() : rows + last * neurons, {}, int(groups[count + first + k])};
            Output &output = outputs[k];
            output.before = last < 0 ? nullptr : sums + last * size;
            output.also_before = last >= 0 || zero;  // else all its codes are 0
            output.count = group.count + output.also_before;
            for (int r = 0; r < group.count; r++) {
                group.rows[r] = rows + order[begin + r] * neurons;
                output.rows[r] = sums + order[begin + r] * size;
            }
            changes[k].list<BITS>(group, output.also_before, s);
        }
        for (int64_t o = 0; o < s.outputs; o += 1 << BITS) {
            const int8_t *const those = weights + o * s.kernel_high * s.kernel_wide * s.channels;
            for (int64_t k = 0; k < some; k++) add_up_rows<BITS>(s, those, changes[k], outputs[k], o);
        }
    }
}

}  // namespace

// How many neurons' weights are interleaved, and how many times 128 bits a register has.
extern "C" int32_t spikezip_together() { return 4; }

// The sums of some groups, of each its first row in the order, how many there are, and the one before; whose sums are
// there, or come before. Weights are packed for `block` output channels: 16, 32 or 64.
extern "C" void spikezip_events(const Shape *shape, const int8_t *weights, int32_t block, const uint8_t *rows, int32_t zero,
                                const int64_t *order, const int64_t *groups, int64_t count, float *sums) {
    const auto some = block == 16 ? events<4> : block == 32 ? events<5> : events<6>;
    some(*shape, weights, rows, zero, order, groups, count, sums);
}
#endif
