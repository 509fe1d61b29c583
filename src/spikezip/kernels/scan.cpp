// The scan of layers whose drive lies in memory, and values of single terms (see scan.h).
#include "scan.h"

namespace {

// The value of one term, row by row.
template <class A>
void write(const Term &term, int64_t rows, int64_t neurons, int64_t period, A *out) {
    const Wide<A> wide(term, period);
    for (int64_t row = 0; row < rows; row++, out += neurons)
        for (int64_t i = 0; i < neurons; i += period)
            wide.add(out + i, row, neurons, i, period < neurons - i ? period : neurons - i, true);
}

template <class A>
int64_t scan_all(const Layer &layer) {
    Scan<A> scan(layer);
    for (int64_t b = 0; b < layer.images; b++) {
        scan.begin(b);
        scan.some(b, 0, layer.neurons);
        scan.end(b);
    }
    return scan.rows();
}

}  // namespace

extern "C" void spikezip_numbers(const Term *term, int32_t wide, int64_t rows, int64_t neurons, int64_t period, void *out) {
    if (wide) write(*term, rows, neurons, period, static_cast<double *>(out));
    else write(*term, rows, neurons, period, static_cast<float *>(out));
}

// Returns the number of rows made.
extern "C" int64_t spikezip_scan(const Layer *layer) {
    return layer->wide ? scan_all<double>(*layer) : scan_all<float>(*layer);
}
