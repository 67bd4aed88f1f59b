// cuBLAS and cuRAND as far as candle calls them: handles, and the one product behind `matmul`.
// Sums are f32, in the order of `k`, as cuBLAS is asked for them; no rounding between.

#include "device.h"
#include "half.h"

using namespace mock;

#define HELD std::lock_guard<std::recursive_mutex> held(mock::lock)

namespace {

struct Handle {
    void* stream = nullptr;
};

// Of `cudaDataType_t`.
enum Type { F32 = 0, F16 = 2, BF16 = 14 };

// Of `cublasStatus_t`.
enum Status { OK = 0, NOT_INITIALIZED_ = 1, INVALID = 7, FAILED = 13, UNSUPPORTED = 15 };

size_t size_of(int type) { return type == F32 ? 4 : 2; }

float load(uint64_t base, size_t index, int type) {
    if (type == F32) return reinterpret_cast<const float*>(base)[index];
    if (type == F16) return static_cast<float>(widen(reinterpret_cast<const f16*>(base)[index]));
    return static_cast<float>(widen(reinterpret_cast<const bf16*>(base)[index]));
}

void store(uint64_t base, size_t index, int type, float value) {
    if (type == F32) reinterpret_cast<float*>(base)[index] = value;
    else if (type == F16) narrow(value, &reinterpret_cast<f16*>(base)[index]);
    else narrow(value, &reinterpret_cast<bf16*>(base)[index]);
}

// Column-major: `c[i, j] = Σ a[i, l] · b[l, j]`, `i < m`, `j < n`, `l < k`.
struct Product {
    bool transpose_a, transpose_b;
    size_t m, n, k;
    float alpha, beta;
    uint64_t a, b, c;
    int a_type, b_type, c_type;
    size_t lda, ldb, ldc;
    long long stride_a, stride_b, stride_c;
    size_t count;

    int check() const {
        auto extent = [](size_t ld, size_t rows, size_t columns, long long stride, size_t count) {
            return ld * (columns - 1) + rows + static_cast<size_t>(stride) * (count - 1);
        };
        const struct { const char* name; uint64_t at; size_t values; int type; } operands[] = {
            {"a", a, transpose_a ? extent(lda, k, m, stride_a, count) : extent(lda, m, k, stride_a, count), a_type},
            {"b", b, transpose_b ? extent(ldb, n, k, stride_b, count) : extent(ldb, k, n, stride_b, count), b_type},
            {"c", c, extent(ldc, m, n, stride_c, count), c_type},
        };
        for (auto& operand : operands)
            if (const char* wrong = wrong_with(operand.at, operand.values * size_of(operand.type)))
                return fault(ILLEGAL_ADDRESS, "gemm m %zu n %zu k %zu: operand %s %s", m, n, k, operand.name, wrong);
        return SUCCESS;
    }

    int run() const {
        if (int result = check()) return result;
        std::vector<float> row(k);
        for (size_t at = 0; at < count; at++) {
            size_t offset_a = at * static_cast<size_t>(stride_a), offset_b = at * static_cast<size_t>(stride_b), offset_c = at * static_cast<size_t>(stride_c);
            for (size_t i = 0; i < m; i++) {
                for (size_t l = 0; l < k; l++) row[l] = load(a, offset_a + (transpose_a ? l + i * lda : i + l * lda), a_type);
                for (size_t j = 0; j < n; j++) {
                    float sum = 0;
                    for (size_t l = 0; l < k; l++) sum += row[l] * load(b, offset_b + (transpose_b ? j + l * ldb : l + j * ldb), b_type);
                    size_t to = offset_c + i + j * ldc;
                    store(c, to, c_type, alpha * sum + (beta == 0 ? 0 : beta * load(c, to, c_type)));
                }
            }
        }
        return SUCCESS;
    }
};

}  // namespace

extern "C" {

int cublasCreate_v2(void** handle) {
    *handle = new Handle;
    return OK;
}

int cublasDestroy_v2(void* handle) {
    delete static_cast<Handle*>(handle);
    return OK;
}

int cublasSetStream_v2(void* handle, void* stream) {
    static_cast<Handle*>(handle)->stream = stream;
    return OK;
}

int cublasGemmStridedBatchedEx(void* handle, int transpose_a, int transpose_b, int m, int n, int k, const void* alpha, const void* a,
                               int a_type, int lda, long long stride_a, const void* b, int b_type, int ldb, long long stride_b,
                               const void* beta, void* c, int c_type, int ldc, long long stride_c, int count, int compute, int) {
    HELD;
    if (m <= 0 || n <= 0 || k <= 0 || count <= 0) {
        fault(INVALID_VALUE, "gemm of nothing: m %d n %d k %d, %d times", m, n, k, count);
        return INVALID;
    }
    // `CUBLAS_COMPUTE_32F` and its faster kin have f32 factors; 16F has f16 ones.
    auto factor = [compute](const void* value) {
        if (compute == 64) return static_cast<float>(widen(*static_cast<const f16*>(value)));
        return *static_cast<const float*>(value);
    };
    Product product{transpose_a != 0, transpose_b != 0, size_t(m), size_t(n), size_t(k), factor(alpha), factor(beta),
                    reinterpret_cast<uint64_t>(a), reinterpret_cast<uint64_t>(b), reinterpret_cast<uint64_t>(c), a_type, b_type, c_type,
                    size_t(lda), size_t(ldb), size_t(ldc), stride_a, stride_b, stride_c, size_t(count)};
    if (product.check() != SUCCESS) return FAILED;
    int result = enqueue(static_cast<Handle*>(handle)->stream, "gemm", [product] { return product.run(); });
    return result == SUCCESS ? OK : FAILED;
}

const char* cublasGetStatusName(int) { return "CUBLAS_STATUS_OF_THE_MOCK"; }
const char* cublasGetStatusString(int) { return "an error of the mock; see its stderr"; }

// cuRAND: candle makes a generator with each device. Ferry draws no numbers on it.
int curandCreateGenerator(void** generator, int) {
    static int only;
    *generator = &only;
    return 0;
}
int curandDestroyGenerator(void*) { return 0; }
int curandSetStream(void*, void*) { return 0; }
int curandSetPseudoRandomGeneratorSeed(void*, unsigned long long) { return 0; }

}  // extern "C"
