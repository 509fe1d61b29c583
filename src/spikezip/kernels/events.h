// What the two kernels share that add up 8-bit weights times codes spike by spike, one of which is compiled (see events.py):
// which rows follow one another, and what changes in them. MOST rows are taken together, BEFORE of these being the one
// before.
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

// Some rows of codes that follow one another, and the one before.
struct Group {
    const uint8_t *before;
    const uint8_t *rows[MOST];
    int count;
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

// About how many neurons change: where there are many, a quarter of them is looked at.
int64_t count_changes(const Group &group, int64_t neurons) {
    constexpr int64_t SOME = 128, FEW = 32 * SOME;
    const int64_t step = neurons > FEW ? 4 : 1;
    int64_t total = 0, seen = 0;
    for (int64_t first = 0; first < neurons; first += step * SOME) {
        const int64_t end = std::min(first + SOME, neurons);
        int64_t i = first;
        for (; i + 32 <= end; i += 32) {
            const __m256i before = load32(group.before + i);
            __m256i differs = _mm256_setzero_si256();
            for (int r = 0; r < group.count; r++)
                differs = _mm256_or_si256(differs, _mm256_xor_si256(load32(group.rows[r] + i), before));
            const __m256i same = _mm256_cmpeq_epi8(differs, _mm256_setzero_si256());
            total += 32 - __builtin_popcount(unsigned(_mm256_movemask_epi8(same)));
        }
        for (; i < end; i += 8) {  // neurons of a pixel come in eights
            const __m128i before = load8(group.before + i);
            __m128i differs = _mm_setzero_si128();
            for (int r = 0; r < group.count; r++)
                differs = _mm_or_si128(differs, _mm_xor_si128(load8(group.rows[r] + i), before));
            const __m128i same = _mm_cmpeq_epi8(differs, _mm_setzero_si128());
            total += 8 - __builtin_popcount(unsigned(_mm_movemask_epi8(same)) & 255);
        }
        seen += end - first;
    }
    return total * neurons / seen;
}

}  // namespace

// In which order rows follow one another, one list of steps x images. And how they are taken together, in four lists as
// long: the first of each group in that order; how many there are; the row they are compared with, the one before or -1 for
// none; and the neurons that differ among them, times rows, that row among them if it may hold something. Returns how many
// groups there are; -1 where a row holds for several images, comes back, or is nobody's, or there are not `held` (images may
// lie along another dimension).
extern "C" int64_t spikezip_changes(const uint8_t *rows, int64_t held, const int64_t *map, int64_t steps, int64_t images,
                                    int64_t neurons, int32_t zero, int64_t *order, int64_t *groups) {
    const std::vector<uint8_t> nothing(neurons, uint8_t(zero));
    std::vector<bool> seen(held);
    const int64_t apart = steps * images;
    int64_t count = 0, known = 0;
    for (int64_t b = 0; b < images; b++) {
        int64_t first = count;
        for (int64_t t = 0, last = -1; t < steps; t++) {
            const int64_t row = map[t * images + b];
            if (row == last) continue;
            if (row >= held || seen[row]) return -1;
            seen[row] = true;
            order[count++] = last = row;
        }
        for (int64_t before = -1; first < count; known++) {
            // Compared with nothing, all neurons that are active are listed, not only those that change.
            const auto compared = [&](int64_t last, Group &group) {
                const int also_before = last >= 0 || zero ? BEFORE : 0;
                group.before = last < 0 ? nothing.data() : rows + last * neurons;
                const int64_t left = count - first, most = MOST - also_before, parts = (left + most - 1) / most;
                group.count = int((left + parts - 1) / parts);  // evenly
                for (int r = 0; r < group.count; r++) group.rows[r] = rows + order[first + r] * neurons;
                return count_changes(group, neurons) * (group.count + also_before);
            };
            Group anew, on;
            int64_t work = compared(-1, anew);
            int64_t some = anew.count, with = -1;
            if (before >= 0) {
                const int64_t other = compared(before, on);
                if (other * anew.count < work * on.count) {
                    work = other;
                    some = on.count;
                    with = before;
                }
            }
            groups[known] = first;
            groups[apart + known] = some;
            groups[2 * apart + known] = with;
            groups[3 * apart + known] = work;
            first += some;
            before = order[first - 1];
        }
    }
    return count == held ? known : -1;
}
