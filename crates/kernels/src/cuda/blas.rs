//! Products, through cuBLAS: `c = alpha · op(a) op(b) + beta · c`, row-major, summed in f32. Each matrix may be some of
//! the columns of a wider one.

use std::ffi::c_void;

use candle_core::cuda_backend::cudarc::cublas::{result, sys};
use candle_core::{DType, Error, Result, Tensor, bail};

use super::launch::{device, rows};

/// A matrix as it is stored, and whether its transpose is meant.
#[derive(Clone, Copy)]
pub(super) struct Operand<'a> {
    tensor: &'a Tensor,
    transposed: bool,
}

impl<'a> Operand<'a> {
    pub(super) fn plain(tensor: &'a Tensor) -> Self {
        Self {
            tensor,
            transposed: false,
        }
    }

    pub(super) fn transposed(tensor: &'a Tensor) -> Self {
        Self {
            tensor,
            transposed: true,
        }
    }

    /// `(rows, columns)` of what is meant.
    fn dims(self) -> Result<(usize, usize)> {
        let (rows, columns) = self.tensor.dims2()?;
        Ok(if self.transposed {
            (columns, rows)
        } else {
            (rows, columns)
        })
    }

    fn operation(self) -> sys::cublasOperation_t {
        if self.transposed {
            sys::cublasOperation_t::CUBLAS_OP_T
        } else {
            sys::cublasOperation_t::CUBLAS_OP_N
        }
    }
}

fn kind(dtype: DType) -> Result<sys::cudaDataType> {
    Ok(match dtype {
        DType::F32 => sys::cudaDataType::CUDA_R_32F,
        DType::BF16 => sys::cudaDataType::CUDA_R_16BF,
        DType::F16 => sys::cudaDataType::CUDA_R_16F,
        other => bail!("products of {other:?} are not computed on a GPU"),
    })
}

/// Both operands are of one type, `c` is f32 or of theirs.
pub(super) fn gemm(a: Operand, b: Operand, c: &Tensor, alpha: f64, beta: f64) -> Result<()> {
    let ((m, k), (depth, n)) = (a.dims()?, b.dims()?);
    if k != depth
        || c.dims() != [m, n]
        || a.tensor.dtype() != b.tensor.dtype()
        || ![DType::F32, a.tensor.dtype()].contains(&c.dtype())
    {
        bail!(
            "a product of [{m}, {k}] {:?} and [{depth}, {n}] {:?} does not give {:?} {:?}",
            a.tensor.dtype(),
            b.tensor.dtype(),
            c.dims(),
            c.dtype()
        );
    }
    if m == 0 || n == 0 {
        return Ok(());
    }
    let size = |value: usize| i32::try_from(value).map_err(Error::wrap);
    let (alpha, beta) = (alpha as f32, beta as f32);
    let (kind, into) = (kind(a.tensor.dtype())?, kind(c.dtype())?);
    let blas = device(c)?.cublas_handle();
    let ((a_at, a_step), (b_at, b_step), (c_at, c_step)) =
        (rows(a.tensor)?, rows(b.tensor)?, rows(c)?);
    #[expect(unsafe_code, reason = "cuBLAS is a C library")]
    // SAFETY: addresses and leading dimensions are those of matrices of whole rows whose shapes were checked above, and
    // cuBLAS enqueues on candle's stream, in whose order their memory is freed. cuBLAS is column-major: what it sees are
    // the transposes, so it is asked for cᵀ = op(b)ᵀ op(a)ᵀ.
    unsafe {
        result::gemm_ex(
            *blas.handle(),
            b.operation(),
            a.operation(),
            size(n)?,
            size(m)?,
            size(k)?,
            (&raw const alpha).cast::<c_void>(),
            b_at as *const c_void,
            kind,
            size(b_step.max(1))?,
            a_at as *const c_void,
            kind,
            size(a_step.max(1))?,
            (&raw const beta).cast::<c_void>(),
            c_at as *mut c_void,
            into,
            size(c_step)?,
            sys::cublasComputeType_t::CUBLAS_COMPUTE_32F,
            sys::cublasGemmAlgo_t::CUBLAS_GEMM_DEFAULT,
        )
        .map_err(Error::wrap)
    }
}
