// One layer of ST-BIF neurons over time, on rows: see scan.py for what is computed.
//
// A row is what one image holds at one step. A step in which nothing changed for an image has no row of its own: `map`
// says for each (step, image) which row holds. So a step in which neither the drive nor the tracers of an image move
// costs nothing here, and makes no row for the layers behind.
//
// Compiled without contraction of a*b + c: each operation rounds as the same operation of torch does.
#pragma once
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>
#include <vector>

namespace {

struct Term {            // one summand of the drive: (rows[map] - zero) * scale + bias
    const void *rows;    // [rows, neurons]; or null,
    void **each;         // and where each row is
    const int64_t *map;  // [steps, images]
    const void *scale;   // of each channel, or null for `number`
    const void *bias;    // of each channel, or null for 0
    int64_t scales;      // how many of them there are
    int64_t biases;
    int32_t type;        // 0 float, 1 double, 2 uint8
    int32_t zero;        // of uint8
    double number;       // the scale of all
    double factor;       // of fixed point: what a number is multiplied with before it is rounded,
    double steps;        // to 1/steps (0: not rounded),
    double limit;        // and at most so many of them
    double times;        // of a function that the drive still goes through: what that is multiplied with
    int64_t span;        // of softmax: over how many neurons, which lie together
    int32_t function;    // 0: none
};

// As fixed point rounds: times what, to 1/steps, at most so many of them.
double rounded(double x, double times, double steps, double limit) {
    double q = std::floor(x * times * steps + 0.5);
    q = q < -limit ? -limit : q;
    q = q > limit ? limit : q;
    return q / steps;
}

// exp to 3e-7, for x <= 80; below -87 as at -87.
inline float exponential(float x) {
    const float e = x < -87 ? -87.0f : x, k = std::floor(e * 1.44269504f + 0.5f);
    const float r = e - k * 0.693359375f + k * 2.12194440e-4f;
    float p = 1.9875691500e-4f;  // the polynomial of the Cephes library
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    const int32_t bits = (int32_t(k) + 127) << 23;
    float power;
    std::memcpy(&power, &bits, sizeof power);
    return (p * (r * r) + r + 1) * power;
}

inline float within(float x, float low, float high) {  // keeps NaN
    x = x < low ? low : x;
    return x > high ? high : x;
}

// Functions of one number: an estimate, to 1e-6 (of x, where it grows with x), and what torch computes in float64.
struct Gelu {
    static constexpr bool grows = true;
    static float estimate(float x) {
        const float w = within(x * 0.70710678f, -4, 4), w2 = w * w;
        // erf to 5e-7, for |w| <= 4: the rational function that Eigen and XLA use.
        float p = -2.72614225801306e-10f, q = -1.45660718464996e-05f;
        p = p * w2 + 2.77068142495902e-08f;
        p = p * w2 - 2.10102402082508e-06f;
        p = p * w2 - 5.69250639462346e-05f;
        p = p * w2 - 7.34990630326855e-04f;
        p = p * w2 - 2.95459980854025e-03f;
        p = p * w2 - 1.60960333262415e-02f;
        q = q * w2 - 2.13374055278905e-04f;
        q = q * w2 - 1.68282697438203e-03f;
        q = q * w2 - 7.37332916720468e-03f;
        q = q * w2 - 1.42647390514189e-02f;
        return x * (0.5f + 0.5f * (w * p / q));
    }
    static double exact(double x) { return x * 0.5 * (1 + std::erf(x * 0.70710678118654752440)); }
};

struct Sigmoid {
    static constexpr bool grows = false;
    static float estimate(float x) { return 1 / (1 + exponential(-within(x, -80, 87))); }
    static double exact(double x) { return 1 / (1 + std::exp(-x)); }
};

struct Silu {
    static constexpr bool grows = true;
    static float estimate(float x) { return (x < -80 ? -80.0f : x) * Sigmoid::estimate(x); }
    static double exact(double x) { return x / (1 + std::exp(-x)); }
};

struct Hardsigmoid {
    static constexpr bool grows = false;
    static float estimate(float x) { return within(x + 3, 0, 6) * 0.16666667f; }
    static double exact(double x) { return (x + 3 < 0 ? 0 : x + 3 > 6 ? 6 : x + 3) / 6; }
};

struct Hardswish {
    static constexpr bool grows = true;
    static float estimate(float x) { return x * Hardsigmoid::estimate(x); }
    static double exact(double x) { return x * (x + 3 < 0 ? 0 : x + 3 > 6 ? 6 : x + 3) / 6; }
};

struct Tanh {
    static constexpr bool grows = false;
    static float estimate(float x) { return 1 - 2 / (1 + exponential(within(2 * x, -80, 80))); }
    static double exact(double x) { return std::tanh(x); }
};

// A function times `times`, as fixed point would round it; or, where that cannot make it another code, an estimate of it.
template <class Function>
void entrywise(float *__restrict x, double times, double steps, double limit, int64_t n) {
    const float factor = float(times), rounding = float(0.5 / steps), error = 1e-6f * std::fabs(factor);
    uint8_t doubt[256];
    for (int64_t start = 0; start < n; start += 256, x += 256) {
        const int size = n - start < 256 ? int(n - start) : 256;
        float estimate[256];
        uint8_t any = 0;
        for (int i = 0; i < size; i++) {
            estimate[i] = factor * Function::estimate(x[i]);
            const float off = estimate[i] - std::floor(estimate[i]) - 0.5f;  // from the middle between two codes
            const float most = Function::grows ? error * std::fabs(x[i]) : error;
            doubt[i] = !(std::fabs(off) > rounding + most) | !(std::fabs(x[i]) < INFINITY);
            any |= doubt[i];
        }
        for (int i = 0; any && i < size; i++)
            if (doubt[i]) estimate[i] = float(rounded(Function::exact(x[i]), times, steps, limit));
        std::memcpy(x, estimate, size * sizeof(float));
    }
}

// exp(x - most); 16 sums of them. Whether all are numbers, at most `most`.
bool exponentials(float *__restrict out, const float *__restrict x, float most, int size, float *__restrict sums) {
    uint8_t odd = 0;
    for (int i = 0; i < size; i++) {
        const float d = x[i] - most;
        out[i] = exponential(d);
        odd |= !(d <= 0);
    }
    int i = 0;
    for (; i + 16 <= size; i += 16)
        for (int j = 0; j < 16; j++) sums[j] += out[i + j];
    for (; i < size; i++) sums[0] += out[i];
    return odd == 0;
}

float greatest(const float *x, int64_t n) {
    float most[16];
    for (int j = 0; j < 16; j++) most[j] = -INFINITY;
    int64_t i = 0;
    for (; i + 16 <= n; i += 16)
        for (int j = 0; j < 16; j++) most[j] = x[i + j] > most[j] ? x[i + j] : most[j];
    for (; i < n; i++) most[0] = x[i] > most[0] ? x[i] : most[0];
    for (int j = 1; j < 16; j++) most[0] = most[j] > most[0] ? most[j] : most[0];
    return most[0];
}

// The same for softmax, over n neurons that lie together.
void softmax(float *__restrict x, float *__restrict estimate, double times, double steps, double limit, int64_t n) {
    const float most = greatest(x, n), rounding = float(0.5 / steps);
    double sum = 0;
    bool sure = true;
    for (int64_t at = 0; at < n; at += 256) {
        float sums[16] = {};
        sure &= exponentials(estimate + at, x + at, most, n - at < 256 ? int(n - at) : 256, sums);
        for (float some : sums) sum += some;
    }
    const float factor = float(times / sum);
    uint8_t doubt = !sure;
    for (int64_t i = 0; i < n; i++) {
        const float y = estimate[i] * factor;
        estimate[i] = y < 300 ? y : 300.0f;  // past every code of a byte
        const float off = estimate[i] - std::floor(estimate[i]) - 0.5f;
        doubt |= !(std::fabs(off) > rounding + 4e-6f * estimate[i]);
    }
    if (!doubt) {
        std::memcpy(x, estimate, n * sizeof(float));
        return;
    }
    std::vector<double> exact(n);
    sum = 0;
    for (int64_t i = 0; i < n; i++) sum += exact[i] = std::exp(double(x[i]) - double(most));
    for (int64_t i = 0; i < n; i++) x[i] = float(rounded(exact[i] / sum, times, steps, limit));
}

template <class A>
void load_rounded(A *__restrict sum, const double *__restrict x, double factor, double steps, double limit, int64_t n,
                  bool first) {
    const double step = 1 / steps;  // a power of two
    for (int64_t i = 0; i < n; i++) {
        double q = std::floor(x[i] * factor * steps + 0.5);
        q = q < -limit ? -limit : q;
        q = q > limit ? limit : q;
        sum[i] = first ? A(q * step) : sum[i] + A(q * step);
    }
}

template <class A, class In>
void load(A *__restrict sum, const In *__restrict x, A zero, const A *__restrict scale, const A *__restrict bias,
          int64_t n, bool first) {
#define EACH(value)                                              \
    if (first) for (int64_t i = 0; i < n; i++) sum[i] = (value); \
    else for (int64_t i = 0; i < n; i++) sum[i] += (value)
    if (scale && bias) { EACH((A(x[i]) - zero) * scale[i] + bias[i]); }
    else if (scale) { EACH((A(x[i]) - zero) * scale[i]); }
    else { EACH(A(x[i]) - zero); }
#undef EACH
}

// A term whose scale and bias are repeated over as many neurons as are handled at once.
template <class A>
struct Wide {
    const Term &term;
    std::vector<A> scale, bias;
    mutable std::vector<float> estimates;

    Wide(const Term &term, int64_t period) : term(term), estimates(term.span) {
        if (term.steps != 0 && term.function == 0) return;
        if (term.bias) repeat(bias, static_cast<const A *>(term.bias), term.biases, period);
        if (term.scale) repeat(scale, static_cast<const A *>(term.scale), term.scales, period);
        else if (term.bias || term.number != 1) scale.assign(period, A(term.number));
    }

    static void repeat(std::vector<A> &to, const A *values, int64_t count, int64_t period) {
        to.reserve(period);
        while (int64_t(to.size()) < period) to.insert(to.end(), values, values + count);
    }

    void add(A *sum, int64_t row, int64_t neurons, int64_t at, int64_t n, bool first) const {
        const A *times = scale.empty() ? nullptr : scale.data(), *plus = bias.empty() ? nullptr : bias.data();
        const void *const from = term.rows ? term.rows : term.each[row];
        const int64_t offset = (term.rows ? row * neurons : 0) + at;
        const A zero = A(term.zero);
        if (term.steps != 0 && term.function == 0) {
            const double *x = static_cast<const double *>(from) + offset;
            return load_rounded(sum, x, term.factor, term.steps, term.limit, n, first);
        }
        switch (term.type) {
            case 0: load(sum, static_cast<const float *>(from) + offset, zero, times, plus, n, first); break;
            case 1: load(sum, static_cast<const double *>(from) + offset, zero, times, plus, n, first); break;
            default: load(sum, static_cast<const uint8_t *>(from) + offset, zero, times, plus, n, first);
        }
        if constexpr (std::is_same_v<A, float>)
            if (term.function != 0) apply(sum, n);
    }

    void apply(float *x, int64_t n) const {
        const double times = term.times, steps = term.steps, limit = term.limit;
        switch (term.function) {  // in the order of native.py
            case 1:
                for (const float *end = x + n; x < end; x += term.span)
                    softmax(x, estimates.data(), times, steps, limit, term.span);
                break;
            case 2: entrywise<Gelu>(x, times, steps, limit, n); break;
            case 3: entrywise<Silu>(x, times, steps, limit, n); break;
            case 4: entrywise<Sigmoid>(x, times, steps, limit, n); break;
            case 5: entrywise<Hardswish>(x, times, steps, limit, n); break;
            case 6: entrywise<Hardsigmoid>(x, times, steps, limit, n); break;
            case 7: entrywise<Tanh>(x, times, steps, limit, n); break;
        }
    }
};

// Q(u), counted from the lowest code.
template <class A>
void quantize(uint8_t *__restrict goal, const A *__restrict sum, A theta, A low, A high, int64_t n) {
#define EACH(ratio)                                 \
    for (int64_t i = 0; i < n; i++) {               \
        A q = std::floor((ratio) + A(0.5));         \
        q = q > low ? q : low; /* NaN is low */     \
        q = q > high ? high : q;                    \
        goal[i] = uint8_t(int32_t(q - low));        \
    }
    if (theta == A(1)) { EACH(sum[i]) }
    else { EACH(sum[i] / theta) }
#undef EACH
}

struct Moves {
    int64_t up = 0, down = 0;
    bool behind = false;
};

// One step towards the goal, at most `slew` levels.
void follow(uint8_t *__restrict now, const uint8_t *__restrict before, const uint8_t *__restrict goal, uint8_t slew,
            int64_t n, Moves &m) {
    uint8_t up[256], down[256];                         // loops of one kind of arithmetic each: these vectorise
    for (int64_t start = 0; start < n; start += 256) {  // 256 moves of at most 255 fit 16 bits
        const int size = n - start < 256 ? int(n - start) : 256;
        const uint8_t *__restrict from = before + start, *__restrict to = goal + start;
        uint8_t *__restrict here = now + start;
        uint8_t late = 0;
        for (int i = 0; i < size; i++) {
            const uint8_t rise = to[i] > from[i] ? uint8_t(to[i] - from[i]) : uint8_t(0);
            const uint8_t fall = from[i] > to[i] ? uint8_t(from[i] - to[i]) : uint8_t(0);
            up[i] = rise < slew ? rise : slew;
            down[i] = fall < slew ? fall : slew;
            here[i] = uint8_t(from[i] + up[i] - down[i]);
            late |= uint8_t(here[i] ^ to[i]);
        }
        uint16_t ups = 0, downs = 0;
        for (int i = 0; i < size; i++) ups = uint16_t(ups + up[i]);
        for (int i = 0; i < size; i++) downs = uint16_t(downs + down[i]);
        m.up += ups;
        m.down += downs;
        m.behind |= late != 0;
    }
}

// Bytes wrap around: codes as levels, or back, whatever the levels are.
template <class To, class From>
void shift(To *__restrict to, const From *__restrict from, int32_t by, int64_t n) {
    for (int64_t i = 0; i < n; i++) to[i] = To(uint8_t(uint8_t(from[i]) + uint8_t(by)));
}

// A layer of neurons. Codes are counted from the lowest (uint8), tracers before and after are levels (their low byte).
struct Layer {
    const Term *terms;                // summands of the drive,
    int64_t count, wide;              // how many, and whether they are added in float64
    int64_t steps, images, neurons;
    int64_t period;                   // neurons that are handled at once: whole repeats of the channels
    double theta;
    int64_t low, high, slew;
    const int8_t *start;              // [images, neurons], or null: all begin at 0
    uint8_t *out;                     // [steps * images, neurons] at most: a row wherever tracers of an image changed
    int64_t *map, *spikes, *negative;  // [steps, images]
    uint8_t *behind;                  // likewise
    int8_t *last;                     // [images, neurons]
};

// The scan of a layer: of each image from `begin` to `end`, some neurons after the other through all steps. A step has a
// row of its own from the beginning if any neuron may move in it, and loses it in the end if none has.
template <class A>
class Scan {
  public:
    explicit Scan(const Layer &layer) : l(layer), sum(l.period), goal(l.period), first(l.period) {
        for (int64_t k = 0; k < l.count; k++) wide.emplace_back(l.terms[k], l.period);
    }

    void begin(int64_t b) {
        int64_t farthest = l.high - l.low;  // from a goal: tracers may begin past their limits
        for (int64_t i = 0; l.start && i < l.neurons; i += l.period) {
            const int64_t n = std::min(l.period, l.neurons - i);
            shift(first.data(), l.start + b * l.neurons + i, int32_t(-l.low), n);
            farthest = std::max<int64_t>(farthest, *std::max_element(first.data(), first.data() + n));
        }
        const int64_t slew = std::max<int64_t>(l.slew, 1), longest = (farthest + slew - 1) / slew;
        if (open++ == 0) made = kept;
        for (int64_t t = 0, moving = 0; t < l.steps; t++) {
            const int64_t at = t * l.images + b;
            if (moved(t, b)) moving = longest;
            l.map[at] = moving-- > 0 || t == 0 ? made++ : l.map[at - l.images];
            l.spikes[at] = l.negative[at] = l.behind[at] = 0;
        }
    }

    void some(int64_t b, int64_t from, int64_t to) {
        for (int64_t i = from; i < to; i += l.period) through(b, i, std::min(l.period, to - i));
    }

    void end(int64_t b) {
        for (int64_t t = 0; t < l.steps; t++) {
            const int64_t at = t * l.images + b, row = l.map[at];
            if (t > 0 && l.spikes[at] == 0) {
                l.map[at] = l.map[at - l.images];
                continue;
            }
            if (row != kept) std::memmove(l.out + kept * l.neurons, l.out + row * l.neurons, l.neurons);
            l.map[at] = kept++;
        }
        shift(l.last + b * l.neurons, l.out + (kept - 1) * l.neurons, int32_t(l.low), l.neurons);
        open--;
    }

    int64_t rows() const { return kept; }

  private:
    const Layer &l;
    std::vector<Wide<A>> wide;
    std::vector<A> sum;
    std::vector<uint8_t> goal, first;
    int64_t kept = 0, made = 0, open = 0;

    bool moved(int64_t t, int64_t b) const {
        const int64_t at = t * l.images + b;
        for (int64_t k = 0; k < l.count && t > 0; k++)
            if (l.terms[k].map[at] != l.terms[k].map[at - l.images]) return true;
        return t == 0;
    }

    void through(int64_t b, int64_t i, int64_t n) {
        const uint8_t most = uint8_t(l.slew > 255 ? 255 : l.slew), *before = first.data();
        if (l.start) shift(first.data(), l.start + b * l.neurons + i, int32_t(-l.low), n);
        else std::memset(first.data(), uint8_t(-l.low), n);
        bool late = false;
        for (int64_t t = 0; t < l.steps; t++) {
            const int64_t at = t * l.images + b;
            if (t > 0 && l.map[at] == l.map[at - l.images]) continue;
            uint8_t *const now = l.out + l.map[at] * l.neurons + i;
            const bool anew = moved(t, b);
            if (anew) {
                for (int64_t k = 0; k < l.count; k++) wide[k].add(sum.data(), l.terms[k].map[at], l.neurons, i, n, k == 0);
                quantize(goal.data(), sum.data(), A(l.theta), A(l.low), A(l.high), n);
            }
            if (anew || late) {
                Moves m;
                follow(now, before, goal.data(), most, n, m);
                l.spikes[at] += m.up + m.down;
                l.negative[at] += m.down;
                l.behind[at] |= m.behind;
                late = m.behind;
            } else {
                std::memcpy(now, before, n);
            }
            before = now;
        }
    }
};

}  // namespace
