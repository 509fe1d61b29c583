// What the two kernels share that add up 8-bit weights times codes spike by spike, one of which is compiled (see events.py):
// which rows follow one another, and how they are best taken together, MOST at a time. A neuron that changes among so many
// costs COST[so many] for each output that it adds to; an output costs FIXED, and OF_ROW for each row.
#pragma once
#include <immintrin.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <vector>

namespace {

struct Shape {
    int64_t high, wide, channels;          // of the codes
    int64_t out_high, out_wide, outputs;   // of the sums
    int64_t kernel_high, kernel_wide, down, right, top, left;
};

inline __m128i load8(const void *at) { return _mm_loadl_epi64(static_cast<const __m128i *>(at)); }
inline __m128i load16(const void *at) { return _mm_loadu_si128(static_cast<const __m128i *>(at)); }
inline __m256i load32(const void *at) { return _mm256_loadu_si256(static_cast<const __m256i *>(at)); }

struct Places {  // of the bits of a byte that are set
    uint8_t of[256][8] = {};
    Places() {
        for (int mask = 0; mask < 256; mask++)
            for (int bit = 0, n = 0; bit < 8; bit++)
                if (mask >> bit & 1) of[mask][n++] = uint8_t(bit);
    }
};
const Places places;

// Of the rows of an image from one on: how many neurons change among so many of them (1, 2, ...), and how many are active.
struct Differing {
    int64_t changed[MOST] = {}, active[MOST] = {};
};

// About how many, where there are many neurons: some are looked at, all over the image.
std::vector<Differing> count_changes(const std::vector<const uint8_t *> &rows, int64_t neurons, uint8_t zero) {
    constexpr int64_t TOGETHER = 64, ENOUGH = 32 * TOGETHER;
    const int64_t held = int64_t(rows.size()), step = std::max<int64_t>(1, neurons / ENOUGH) * TOGETHER;
    const int64_t room = (neurons + step - 1) / step * TOGETHER;
    static thread_local std::vector<uint8_t> looked_at;
    looked_at.assign((held + 1) * room, zero);  // the first are nothing, and so is what a row lacks
    int64_t seen = 0;
    for (int64_t from = 0, to = room; from < neurons; from += step, to += TOGETHER) {
        const int64_t some = std::min(TOGETHER, neurons - from);
        for (int64_t r = 0; r < held; r++) memcpy(looked_at.data() + to + r * room, rows[r] + from, some);
        seen += some;
    }
    std::vector<Differing> found(held);
    const __m256i nothing = _mm256_set1_epi8(char(zero));
    for (int64_t i = 0; i < room; i += 32)
        for (int64_t r = 0; r < held; r++) {
            const uint8_t *row = looked_at.data() + r * room + i;
            const __m256i before = load32(row);
            __m256i changed = _mm256_setzero_si256(), active = changed;
            for (int64_t n = 0; n < std::min<int64_t>(MOST, held - r); n++) {
                const __m256i now = load32(row += room);
                changed = _mm256_or_si256(changed, _mm256_xor_si256(now, before));
                active = _mm256_or_si256(active, _mm256_xor_si256(now, nothing));
                const auto count = [](__m256i some) {
                    const __m256i none = _mm256_cmpeq_epi8(some, _mm256_setzero_si256());
                    return 32 - __builtin_popcount(unsigned(_mm256_movemask_epi8(none)));
                };
                found[r].changed[n] += count(changed);
                found[r].active[n] += count(active);
            }
        }
    for (Differing &some : found)
        for (int n = 0; n < MOST; n++) {
            some.changed[n] = some.changed[n] * neurons / seen;
            some.active[n] = some.active[n] * neurons / seen;
        }
    return found;
}

struct Part {  // of an image's rows that are taken together
    int64_t count = 0, work = 0, all = INT64_MAX;  // how many, what they cost, and what all up to here do
    bool anew = false;                             // compared with nothing, as fewer are active than change
};

// How the rows of an image are cheapest taken together, by where each part ends: the best way to do so up to there.
std::vector<Part> part(const std::vector<Differing> &differing, double outputs) {
    const int64_t held = int64_t(differing.size());
    std::vector<Part> best(held + 1);
    best[0].all = 0;
    for (int64_t end = 1; end <= held; end++)
        for (int64_t count = 1; count <= std::min<int64_t>(MOST, end); count++) {
            const Differing &some = differing[end - count];
            const int64_t changed = some.changed[count - 1], active = some.active[count - 1];
            const bool anew = end == count || active <= changed;
            const int64_t work = (anew ? active : changed) * COST[count] + int64_t(outputs * (FIXED + OF_ROW * count));
            if (best[end - count].all + work < best[end].all) best[end] = {count, work, best[end - count].all + work, anew};
        }
    return best;
}

}  // namespace

// In which order rows follow one another, one list of steps x images. And how they are taken together, in four lists as
// long: the first of each group in that order; how many there are; the row they are compared with, the one before or -1 for
// none; and what they cost. Returns how many groups there are; -1 where a row holds for several images, comes back, or is
// nobody's, or there are not `held` (images may lie along another dimension).
extern "C" int64_t spikezip_changes(const Shape *shape, const uint8_t *rows, int64_t held, const int64_t *map, int64_t steps,
                                    int64_t images, int32_t zero, int64_t *order, int64_t *groups) {
    const int64_t neurons = shape->high * shape->wide * shape->channels, apart = steps * images;
    const int64_t pixels = shape->out_high * shape->out_wide * shape->down * shape->right;
    const double outputs = double(pixels) / (shape->kernel_high * shape->kernel_wide);  // for each that a neuron adds to
    std::vector<bool> seen(held);
    std::vector<const uint8_t *> of_image;
    int64_t count = 0, known = 0;
    for (int64_t b = 0; b < images; b++) {
        const int64_t first = count;
        of_image.clear();
        for (int64_t t = 0, last = -1; t < steps; t++) {
            const int64_t row = map[t * images + b];
            if (row == last) continue;
            if (row >= held || seen[row]) return -1;
            seen[row] = true;
            order[count++] = last = row;
            of_image.push_back(rows + row * neurons);
        }
        const std::vector<Part> best = part(count_changes(of_image, neurons, uint8_t(zero)), outputs);
        int64_t parts = 0;
        for (int64_t end = count - first; end > 0; end -= best[end].count) parts++;
        known += parts;
        for (int64_t end = count - first, at = known - 1; end > 0; end -= best[end].count, at--) {
            const int64_t begin = first + end - best[end].count;
            groups[at] = begin;
            groups[apart + at] = best[end].count;
            groups[2 * apart + at] = best[end].anew ? -1 : order[begin - 1];
            groups[3 * apart + at] = best[end].work;
        }
    }
    return count == held ? known : -1;
}
