// Sums of 8-bit weights times codes, spike by spike, on processors with dot products of bytes (AVX-512 VNNI): those of the
// row before, and what the neurons that changed add to it. See events.py.
//
// A few rows that follow one another are taken together. The neurons that change in any of them are listed, pixel by
// pixel: where their weights lie, and by how much they change from row to row. For every output and some of its channels,
// the listed neurons of its window are gone through once, four at a time: their weights are interleaved and multiplied with
// the changes of every row, whose sums stay in registers. A neuron that does not change costs nothing, and to find and to
// interleave the weights of one that does is shared by the rows. The processor multiplies bytes from 0 on with signed ones:
// weights are stored plus 128, and what that adds to each row is known from how far all neurons of its window rose.
#if defined(__AVX512BW__) && defined(__AVX512VL__) && defined(__AVX512VNNI__)
#include <cstdint>
constexpr int MOST = 6;  // rows whose sums registers hold
constexpr int64_t COST[] = {0, 30, 35, 40, 48, 56, 66}, FIXED = 3000, OF_ROW = 650;  // hundredths of a Zen 5's nanoseconds
#include <memory>

#include "events.h"
#include "scan.h"

namespace {

constexpr int64_t LISTED = 1 << 16;  // neurons in which changes are looked for before they are used,
constexpr int AT_ONCE = 16;          // and groups of rows
constexpr int64_t HELD = 1 << 16;    // sums that are held until they are scanned: half of what a fast cache has

// Some rows of codes that follow one another, and the one before.
struct Group {
    const uint8_t *before;
    const uint8_t *rows[MOST];
    int count;
};

// Where their sums go.
struct Output {
    float *rows[MOST];
    const float *before;  // nullptr where there was nothing
    int count;            // of the rows
};

// -- one output of some rows: BITS, of all templates, for 2^BITS of its channels -------------------------------------

// The weights of four neurons: in each 32 bits those of one output channel.
inline void interleave(const uint8_t *a, const uint8_t *b, const uint8_t *c, const uint8_t *d, __m512i (&found)[4]) {
    const __m512i first = _mm512_loadu_si512(a), second = _mm512_loadu_si512(b);
    const __m512i third = _mm512_loadu_si512(c), fourth = _mm512_loadu_si512(d);
    const __m512i low = _mm512_unpacklo_epi8(first, second), high = _mm512_unpackhi_epi8(first, second);
    const __m512i low_too = _mm512_unpacklo_epi8(third, fourth), high_too = _mm512_unpackhi_epi8(third, fourth);
    found[0] = _mm512_unpacklo_epi16(low, low_too);
    found[1] = _mm512_unpackhi_epi16(low, low_too);
    found[2] = _mm512_unpacklo_epi16(high, high_too);
    found[3] = _mm512_unpackhi_epi16(high, high_too);
}

inline void interleave(const uint8_t *a, const uint8_t *b, const uint8_t *c, const uint8_t *d, __m512i (&found)[2]) {
    const auto both = [](__m256i x, __m256i y) { return _mm512_inserti64x4(_mm512_castsi256_si512(x), y, 1); };
    const __m256i first = load32(a), second = load32(b), third = load32(c), fourth = load32(d);
    const __m256i low = _mm256_unpacklo_epi8(first, second), high = _mm256_unpackhi_epi8(first, second);
    const __m256i low_too = _mm256_unpacklo_epi8(third, fourth), high_too = _mm256_unpackhi_epi8(third, fourth);
    found[0] = both(_mm256_unpacklo_epi16(low, low_too), _mm256_unpackhi_epi16(low, low_too));
    found[1] = both(_mm256_unpacklo_epi16(high, high_too), _mm256_unpackhi_epi16(high, high_too));
}

inline void interleave(const uint8_t *a, const uint8_t *b, const uint8_t *c, const uint8_t *d, __m512i (&found)[1]) {
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

    // Four neurons: where their weights are, and by how much they change in each row.
    void add(const uint8_t *weights, const uint32_t *at, const int8_t *const (&by)[ROWS], int64_t i) {
        __m512i four[PARTS];
        interleave(weights + at[i], weights + at[i + 1], weights + at[i + 2], weights + at[i + 3], four);
#pragma GCC unroll 8
        for (int r = 0; r < ROWS; r++) {
            int32_t those;
            memcpy(&those, by[r] + i, 4);
            const __m512i all = _mm512_set1_epi32(those);
#pragma GCC unroll 4
            for (int p = 0; p < PARTS; p++) of[r][p] = _mm512_dpbusd_epi32(of[r][p], four[p], all);
        }
    }

    // Each row is the one before it, and its changes; of which so much is to be taken off that is in all its sums.
    void write(const Output &output, int64_t place, int64_t outputs, const int32_t *more) {
        for (int p = 0; p < PARTS; p++, place += 16, outputs -= 16) {
            const __mmask16 there = outputs >= 16 ? 0xffff : outputs > 0 ? (1 << outputs) - 1 : 0;
            const __m512 before = output.before ? _mm512_maskz_loadu_ps(there, output.before + place) : _mm512_setzero_ps();
            __m512i sum = _mm512_setzero_si512();
            for (int r = 0; r < ROWS; r++) {
                sum = _mm512_add_epi32(sum, _mm512_sub_epi32(of[r][p], _mm512_set1_epi32(more[r])));
                _mm512_mask_storeu_ps(output.rows[r] + place, there, _mm512_add_ps(before, _mm512_cvtepi32_ps(sum)));
            }
        }
    }
};

// -- which neurons change --------------------------------------------------------------------------------------------

// Eight numbers, the sums of the first registers' entries; 0 for those that there are not.
inline __m256i sums_of(const __m128i (&each)[MOST]) {
    static_assert(MOST == 6);
    const __m128i few = _mm_hadd_epi32(_mm_hadd_epi32(each[0], each[1]), _mm_hadd_epi32(each[2], each[3]));
    const __m128i rest = _mm_hadd_epi32(_mm_hadd_epi32(each[4], each[5]), _mm_setzero_si128());
    return _mm256_set_m128i(rest, few);
}

// Memory that is not written to when it is made, and so not taken from others where it is not used.
template <class T>
struct Room {
    std::unique_ptr<T[]> all;
    size_t size = 0;

    T *data() const { return all.get(); }
    T &operator[](int64_t i) const { return all[i]; }
    void make(size_t most) {
        if (size >= most) return;
        all.reset(new T[most]);
        size = most;
    }
};

struct Changes {
    Room<uint32_t> at;      // where the weights of each are, for a window that begins with the image's line
    Room<int8_t> by[MOST];  // by how much each changes, row by row
    Room<int32_t> start;    // of each pixel's, a multiple of four
    Room<int32_t> risen;    // how far all before rose, eight rows for each start
    int64_t pixels = 0;     // that are listed,
    int64_t gone = 0;       // and how many changes are not kept any more

    // For lists of `lines` lines at once.
    void begin(const Group &group, const Shape &s, int64_t lines) {
        const size_t most = size_t(lines * s.wide * (s.channels + 3) + 64);
        at.make(most);
        for (int r = 0; r < group.count; r++) by[r].make(most);
        start.make(s.high * s.wide + 1);
        risen.make(8 * (s.high * s.wide + 1));
        pixels = gone = 0;
        start[0] = 0;
        _mm256_storeu_si256(reinterpret_cast<__m256i *>(risen.data()), _mm256_setzero_si256());
    }

    // Lines of the image: those before the first are not needed any more.
    template <int BITS>
    void list(const Group &group, const Shape &s, int64_t first, int64_t last) {
        int64_t n = start[pixels];
        const int64_t before = start[std::min(first * s.wide, pixels)];
        if (before > gone) {
            std::copy(at.data() + before - gone, at.data() + n - gone, at.data());
            for (int r = 0; r < group.count; r++)
                std::copy(by[r].data() + before - gone, by[r].data() + n - gone, by[r].data());
            gone = before;
        }
        n -= gone;
        __m256i so_far = load32(risen.data() + 8 * pixels);
        for (; pixels < last * s.wide; pixels++) {
            const uint32_t place = uint32_t(pixels % s.wide * s.channels);
            __m128i rise[MOST];
            n = list_pixel<BITS>(group, pixels * s.channels, s.channels, place, n, rise);
            so_far = _mm256_add_epi32(so_far, sums_of(rise));
            for (; n & 3; n++) {  // neurons that say nothing
                at[n] = place << BITS;
                for (int r = 0; r < group.count; r++) by[r][n] = 0;
            }
            start[pixels + 1] = int32_t(gone + n);
            _mm256_storeu_si256(reinterpret_cast<__m256i *>(risen.data() + 8 * (pixels + 1)), so_far);
        }
    }

    // By how much more all neurons of a window make each row's sums, as weights are stored plus 128.
    void rise(int64_t first, int64_t last, int64_t left, int64_t right, int64_t wide, int32_t *to) const {
        __m256i sum = _mm256_setzero_si256();
        for (int64_t line = first * wide; line < last * wide; line += wide) {
            const int32_t *const from = risen.data() + 8 * line;
            sum = _mm256_add_epi32(sum, _mm256_sub_epi32(load32(from + 8 * right), load32(from + 8 * left)));
        }
        _mm256_store_si256(reinterpret_cast<__m256i *>(to), _mm256_slli_epi32(sum, 7));
    }

#ifdef __AVX512VBMI2__
    template <int BITS>
    int64_t list_pixel(const Group &group, int64_t from, int64_t channels, uint32_t place, int64_t n,
                       __m128i (&rise)[MOST]) {
        alignas(64) uint8_t numbers[64];
        for (int i = 0; i < 64; i++) numbers[i] = uint8_t(i);
        __m512i rises[MOST] = {};
        for (int64_t c = 0; c < channels; c += 64, from += 64, place += 64) {
            const __mmask64 there = channels - c >= 64 ? ~uint64_t(0) : (uint64_t(1) << (channels - c)) - 1;
            __m512i differs = _mm512_setzero_si512(), change[MOST];
            __m512i last = _mm512_maskz_loadu_epi8(there, group.before + from);
            for (int r = 0; r < group.count; r++) {
                const __m512i row = _mm512_maskz_loadu_epi8(there, group.rows[r] + from);
                change[r] = _mm512_sub_epi8(row, last);
                differs = _mm512_or_si512(differs, change[r]);
                rises[r] = _mm512_dpbusd_epi32(rises[r], _mm512_set1_epi8(1), change[r]);
                last = row;
            }
            const __mmask64 changed = _mm512_test_epi8_mask(differs, differs);
            for (int r = 0; r < group.count; r++)
                _mm512_storeu_si512(by[r].data() + n, _mm512_maskz_compress_epi8(changed, change[r]));
            alignas(64) uint8_t which[64];
            _mm512_store_si512(which, _mm512_maskz_compress_epi8(changed, _mm512_load_si512(numbers)));
            for (int k = 0; k < 64; k += 16) {
                const __m512i some = _mm512_cvtepu8_epi32(load16(which + k));
                const __m512i all = _mm512_add_epi32(some, _mm512_set1_epi32(int32_t(place)));
                _mm512_storeu_si512(at.data() + n + k, _mm512_slli_epi32(all, BITS));
            }
            n += __builtin_popcountll(changed);
        }
        for (int r = 0; r < MOST; r++) {
            const __m256i half = _mm256_add_epi32(_mm512_castsi512_si256(rises[r]), _mm512_extracti64x4_epi64(rises[r], 1));
            rise[r] = _mm_add_epi32(_mm256_castsi256_si128(half), _mm256_extracti128_si256(half, 1));
        }
        return n;
    }
#else
    template <int BITS>
    int64_t list_pixel(const Group &group, int64_t from, int64_t channels, uint32_t place, int64_t n,
                       __m128i (&rise)[MOST]) {
        for (auto &some : rise) some = _mm_setzero_si128();
        for (int64_t c = 0; c < channels; c += 8, from += 8, place += 8) {
            __m128i differs = _mm_setzero_si128(), change[MOST], last = load8(group.before + from);
            for (int r = 0; r < group.count; r++) {
                const __m128i row = load8(group.rows[r] + from);
                change[r] = _mm_sub_epi8(row, last);
                differs = _mm_or_si128(differs, change[r]);
                rise[r] = _mm_dpbusd_epi32(rise[r], _mm_set1_epi8(1), change[r]);
                last = row;
            }
            const unsigned same = unsigned(_mm_movemask_epi8(_mm_cmpeq_epi8(differs, _mm_setzero_si128())));
            const unsigned changed = ~same & 255;
            if (!changed) continue;
            const __m128i which = load8(places.of[changed]);
            for (int r = 0; r < group.count; r++)
                _mm_storel_epi64(reinterpret_cast<__m128i *>(by[r].data() + n), _mm_shuffle_epi8(change[r], which));
            const __m256i all = _mm256_add_epi32(_mm256_cvtepu8_epi32(which), _mm256_set1_epi32(int32_t(place)));
            _mm256_storeu_si256(reinterpret_cast<__m256i *>(at.data() + n), _mm256_slli_epi32(all, BITS));
            n += __builtin_popcount(changed);
        }
        return n;
    }
#endif
};

// -- the sums of a group ---------------------------------------------------------------------------------------------

// Lines of outputs.
struct Lines {
    int64_t first, last;
};

// For output channels from `o` on. Not to be inlined, as compilers would keep other loops' variables in its registers;
// and GCC 12 runs out of them unless it allots them for the function as a whole.
template <int BITS, int ROWS>
__attribute__((noinline, optimize("ira-region=all"))) void add_up(const Shape &s, const uint8_t *weights,
                                                                  const Changes &changes, const Output &output,
                                                                  Lines lines, int64_t o) {
    constexpr int64_t block = 1 << BITS;
    const int64_t outputs = std::min(block, s.outputs - o);
    const int8_t *by[ROWS];
    for (int r = 0; r < ROWS; r++) by[r] = changes.by[r].data() - changes.gone;
    const uint32_t *const at = changes.at.data() - changes.gone;
    int64_t place = o;
    for (int64_t y = lines.first * s.down - s.top; y < lines.last * s.down - s.top; y += s.down)
        for (int64_t x = -s.left; x < s.out_wide * s.right - s.left; x += s.right, place += s.outputs) {
            const int64_t left = std::clamp<int64_t>(x, 0, s.wide), right = std::clamp(x + s.kernel_wide, left, s.wide);
            const int64_t first = std::max(y, int64_t(0)), last = std::min(y + s.kernel_high, s.high);
            alignas(32) int32_t more[8];  // than they should be
            changes.rise(first, last, left, right, s.wide, more);
            Sums<BITS, ROWS> sums;
            for (int64_t line = first; line < last; line++) {
                const uint8_t *const some = weights + ((line - y) * s.kernel_wide - x) * s.channels * block;
                const int64_t end = changes.start[line * s.wide + right];
                for (int64_t i = changes.start[line * s.wide + left]; i < end; i += 4)
                    sums.add(some, at, by, i);
            }
            sums.write(output, place, outputs, more);
        }
}

template <int BITS, int ROWS = MOST>
void add_up_rows(const Shape &s, const uint8_t *weights, const Changes &changes, const Output &output, Lines lines,
                 int64_t o) {
    if (output.count == ROWS) return add_up<BITS, ROWS>(s, weights, changes, output, lines, o);
    if constexpr (ROWS > 1) add_up_rows<BITS, ROWS - 1>(s, weights, changes, output, lines, o);
}

// Which rows are to be computed: the order of all, and groups of some that follow one another in it.
struct Work {
    const uint8_t *rows;
    const int64_t *order, *groups;
    int64_t count, neurons;
    std::vector<uint8_t> nothing;

    Work(const Shape &s, const uint8_t *rows, int32_t zero, const int64_t *order, const int64_t *groups, int64_t count)
        : rows(rows), order(order), groups(groups), count(count), neurons(s.high * s.wide * s.channels),
          nothing(neurons, uint8_t(zero)) {}

    int64_t first(int64_t k) const { return groups[k]; }
    int64_t before(int64_t k) const { return groups[2 * count + k]; }

    Group group(int64_t k) const {
        Group found{before(k) < 0 ? nothing.data() : rows + before(k) * neurons, {}, int(groups[count + k])};
        for (int r = 0; r < found.count; r++) found.rows[r] = rows + order[first(k) + r] * neurons;
        return found;
    }

    // Where a group's sums go, if those of a row are at `of(row)`.
    template <class Of>
    Output output(int64_t k, const Of &of) const {
        Output found{{}, before(k) < 0 ? nullptr : of(before(k)), int(groups[count + k])};
        for (int r = 0; r < found.count; r++) found.rows[r] = of(order[first(k) + r]);
        return found;
    }
};

// Several groups are listed before their sums are added up, for some output channels of all and then for the next:
// weights stay in a fast cache.
template <int BITS>
void events(const Shape &s, const uint8_t *weights, const Work &work, float *sums) {
    const int64_t size = s.out_high * s.out_wide * s.outputs;
    static thread_local Changes changes[AT_ONCE];  // of a call before: new memory would be written with zeros
    Output outputs[AT_ONCE];
    const int64_t at_once = std::max<int64_t>(1, std::min<int64_t>(AT_ONCE, LISTED / work.neurons));
    for (int64_t first = 0; first < work.count; first += at_once) {
        const int64_t some = std::min(at_once, work.count - first);
        for (int64_t k = 0; k < some; k++) {
            const Group group = work.group(first + k);
            outputs[k] = work.output(first + k, [&](int64_t row) { return sums + row * size; });
            changes[k].begin(group, s, s.high);
            changes[k].list<BITS>(group, s, 0, s.high);
        }
        for (int64_t o = 0; o < s.outputs; o += 1 << BITS) {
            const uint8_t *const those = weights + o * s.kernel_high * s.kernel_wide * s.channels;
            for (int64_t k = 0; k < some; k++) add_up_rows<BITS>(s, those, changes[k], outputs[k], {0, s.out_high}, o);
        }
    }
}

// The same with the scan of the neurons behind, of which these sums are a term: of each image some lines of outputs after
// the other, whose sums are scanned while they are in a fast cache. `given` has the sums of rows that are in no group, and
// nullptr for those that are. How long the scans took, in ticks, is added to `scanning`.
template <int BITS, class A>
int64_t events_and_scan(const Shape &s, const uint8_t *weights, const Work &work, float *const *given, const Layer &layer,
                        Term &term, uint64_t &scanning) {
    const int64_t line = s.out_wide * s.outputs;
    static thread_local std::vector<Changes> changes;
    static thread_local Room<float> held;
    std::vector<void *> where(layer.steps * layer.images);  // the sums of each row are, as if all lines of them were
    term.each = where.data();
    Scan<A> scan(layer);
    int64_t first = 0, group = 0;  // row of the image in the order, and group
    for (int64_t b = 0; b < layer.images; b++) {
        int64_t end = first, end_group = group;
        for (int64_t t = 0, last = -1; t < layer.steps; t++)
            if (term.map[t * layer.images + b] != last) last = term.map[t * layer.images + b], end++;
        while (end_group < work.count && work.first(end_group) < end) end_group++;
        const int64_t at_once = std::max<int64_t>(1, std::min(s.out_high, HELD / (line * (end - first))));
        const int64_t seen_at_once = std::min(s.high, (at_once - 1) * s.down + std::max(s.kernel_high, s.down));
        held.make(at_once * line * (end - first));
        if (int64_t(changes.size()) < end_group - group) changes.resize(end_group - group);
        for (int64_t k = group; k < end_group; k++) changes[k - group].begin(work.group(k), s, seen_at_once);
        scan.begin(b);
        for (Lines lines{0, 0}; lines.first < s.out_high; lines.first = lines.last) {
            lines.last = std::min(s.out_high, lines.first + at_once);
            const int64_t offset = lines.first * line;
            for (int64_t i = first; i < end; i++) {
                float *const those = given[work.order[i]];
                where[work.order[i]] = those ? those : held.data() + (i - first) * at_once * line - offset;
            }
            const int64_t seen = std::clamp<int64_t>((lines.last - 1) * s.down - s.top + s.kernel_high, 0, s.high);
            const int64_t needed = std::clamp<int64_t>(lines.first * s.down - s.top, 0, seen);
            for (int64_t k = group; k < end_group; k++) changes[k - group].list<BITS>(work.group(k), s, needed, seen);
            const auto of = [&](int64_t row) { return static_cast<float *>(where[row]) + offset; };
            for (int64_t o = 0; o < s.outputs; o += 1 << BITS) {
                const uint8_t *const those = weights + o * s.kernel_high * s.kernel_wide * s.channels;
                for (int64_t k = group; k < end_group; k++)
                    add_up_rows<BITS>(s, those, changes[k - group], work.output(k, of), lines, o);
            }
            const uint64_t began = __rdtsc();
            scan.some(b, offset, lines.last * line);
            scanning += __rdtsc() - began;
        }
        scan.end(b);
        first = end;
        group = end_group;
    }
    return scan.rows();
}

}  // namespace

// How many neurons' weights are interleaved, and how many times 128 bits a register has.
extern "C" int32_t spikezip_together() { return 4; }

// The sums of some groups, of each its first row in the order, how many there are, and the one before; whose sums are
// there, or come before. Weights, plus 128, are packed for `block` output channels: 16, 32 or 64.
extern "C" void spikezip_events(const Shape *shape, const uint8_t *weights, int32_t block, const uint8_t *rows, int32_t zero,
                                const int64_t *order, const int64_t *groups, int64_t count, float *sums) {
    const auto some = block == 16 ? events<4> : block == 32 ? events<5> : events<6>;
    some(*shape, weights, {*shape, rows, zero, order, groups, count}, sums);
}

// The same for the neurons of a layer, one of whose terms these sums are. Returns how many rows it made; `share` is then the
// scans' part of the time.
extern "C" int64_t spikezip_events_and_scan(const Shape *shape, const uint8_t *weights, int32_t block, const uint8_t *rows,
                                            int32_t zero, const int64_t *order, const int64_t *groups, int64_t count,
                                            float *const *given, const Layer *layer, Term *term, double *share) {
    const auto of_floats = block == 16   ? events_and_scan<4, float>
                           : block == 32 ? events_and_scan<5, float>
                                         : events_and_scan<6, float>;
    const auto of_doubles = block == 16   ? events_and_scan<4, double>
                            : block == 32 ? events_and_scan<5, double>
                                          : events_and_scan<6, double>;
    uint64_t scanning = 0;
    const uint64_t began = __rdtsc();
    const auto some = layer->wide ? of_doubles : of_floats;
    const int64_t made = some(*shape, weights, {*shape, rows, zero, order, groups, count}, given, *layer, *term, scanning);
    *share = double(scanning) / double(std::max<uint64_t>(1, __rdtsc() - began));
    return made;
}
#endif
