//! A weight matrix in the form it is stored.
//!
//! The model asks for products with a [`Weight`] and does not care how it is kept: as f32, as bf16,
//! or quantised. Every form writes pieces of its rows as plain numbers ([`Rows`]), and the products
//! of [`crate::linear`] expand those pieces panel by panel.

use std::ops::Range;

use candle_core::backend::BackendStorage as _;
use candle_core::{DType, Device, Result, Storage, StorageRef, Tensor, bail};
use half::bf16;

use crate::cpu::Level;
use crate::gemm::{RowRange, Rows, round};
use crate::ggml::{Ggml, GgmlType};
use crate::host;
use crate::int8::Int8;
use crate::nf4::Nf4;
use crate::vector::Real;

/// A weight matrix `[out_features, in_features]` in its stored form.
#[derive(Clone, Debug)]
pub enum Weight {
    /// Plain numbers: f32, bf16, f16, or f64 in tests.
    Dense(Tensor),
    /// Four bits a number, in blocks of 64.
    Nf4(Nf4),
    /// Eight bits a number, a scale for each row.
    Int8(Int8),
    /// Blocks of a GGUF file.
    Ggml(Ggml),
    /// A quantised matrix on a GPU.
    OnDevice(OnDevice),
}

/// How the codes of a weight on a GPU are read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// Two to a byte, as indices of sixteen levels: NF4, FP4.
    FourBits,
    /// One a byte, as 127ths of the scale of their row: int8.
    EightBits,
    /// Blocks of a GGUF file, each with its own scales.
    Ggml(GgmlType),
}

/// A quantised matrix in a GPU's memory, expanded there for each product.
#[derive(Clone, Debug)]
pub struct OnDevice {
    /// `out_features`
    pub rows: usize,
    /// `in_features`
    pub columns: usize,
    /// How the codes are read.
    pub form: Form,
    /// Bytes, on the device.
    pub codes: Tensor,
    /// f32, on the device; of no length for blocks that hold their own.
    pub scales: Tensor,
    /// Numbers that share a scale, or are in a block; they run over the matrix row by row.
    pub block: usize,
    /// The sixteen levels of four bits, f32 on the device; of no length for all else.
    pub levels: Tensor,
    /// The type it is expanded to, f32 or bf16.
    pub compute: DType,
}

impl Weight {
    /// `(out_features, in_features)`
    pub fn dims(&self) -> Result<(usize, usize)> {
        match self {
            Self::Dense(tensor) => host::matrix(tensor, "weight", "a weight"),
            Self::Nf4(weight) => Ok(weight.dims()),
            Self::Int8(weight) => Ok(weight.dims()),
            Self::Ggml(weight) => Ok(weight.dims()),
            Self::OnDevice(weight) => Ok((weight.rows, weight.columns)),
        }
    }

    /// Memory of the stored form in bytes.
    pub fn bytes(&self) -> usize {
        match self {
            Self::Dense(tensor) => tensor.elem_count() * tensor.dtype().size_in_bytes(),
            Self::Nf4(weight) => weight.bytes(),
            Self::Int8(weight) => weight.bytes(),
            Self::Ggml(weight) => weight.bytes(),
            Self::OnDevice(weight) => weight.codes.elem_count() + 4 * weight.scales.elem_count(),
        }
    }

    /// Whether it lies in the host's memory.
    pub(crate) fn on_cpu(&self) -> bool {
        match self {
            Self::Dense(tensor) => tensor.device().is_cpu(),
            Self::Nf4(_) | Self::Int8(_) | Self::Ggml(_) => true,
            Self::OnDevice(_) => false,
        }
    }

    /// The whole matrix as f32 (f64 stays f64), for tests, merging and export.
    pub fn dequantize(&self) -> Result<Tensor> {
        if let Self::Dense(tensor) = self {
            return match tensor.dtype() {
                DType::F64 => Ok(tensor.clone()),
                _ => tensor.to_dtype(DType::F32),
            };
        }
        #[cfg(feature = "cuda")]
        if let Self::OnDevice(weight) = self {
            return crate::cuda::expand(weight, DType::F32);
        }
        self.written(0..self.dims()?.0)
    }

    /// Rows of a matrix in the host's memory as f32, `[rows, in_features]`.
    fn written(&self, rows: impl ExactSizeIterator<Item = usize>) -> Result<Tensor> {
        let (count, width) = (rows.len(), self.dims()?.1);
        let mut values = vec![0f32; count * width];
        self.with_rows::<f32, _>(|matrix| {
            for (row, out) in rows.zip(values.chunks_exact_mut(width.max(1))) {
                matrix.fill(row, 0..width, out);
            }
            Ok(())
        })?;
        host::tensor(values, (count, width))
    }

    /// Some of its rows as f32, `[ids, in_features]`, on the device where it lies: an embedding's of tokens.
    ///
    /// # Errors
    /// A row beyond the matrix.
    pub fn select(&self, ids: &[u32]) -> Result<Tensor> {
        let (rows, _) = self.dims()?;
        if let Some(id) = ids.iter().find(|id| **id as usize >= rows) {
            bail!("row {id} of a matrix of {rows}");
        }
        match self {
            Self::Dense(tensor) => {
                let ids = Tensor::new(ids, tensor.device())?;
                tensor.index_select(&ids, 0)?.to_dtype(DType::F32)
            }
            #[cfg(feature = "cuda")]
            Self::OnDevice(weight) => crate::cuda::expand_rows(weight, ids),
            _ => self.written(ids.iter().map(|id| *id as usize)),
        }
    }

    /// Whether its products may be of numbers rounded to bf16: they are on a GPU, and on a processor that
    /// multiplies those faster.
    pub fn multiplies_in_bf16(&self) -> bool {
        match self {
            Self::Dense(tensor) => tensor.dtype() == DType::BF16,
            Self::Nf4(weight) => weight.rounded,
            Self::Int8(weight) => weight.rounded,
            Self::Ggml(weight) => weight.rounded,
            Self::OnDevice(weight) => weight.compute == DType::BF16,
        }
    }

    /// The same weight; if it is quantised, its products may be of numbers rounded to bf16 if `compute` is
    /// that. Numbers that are stored plainly are multiplied in the type they have.
    #[must_use]
    pub fn computed_in(mut self, compute: DType) -> Self {
        let bf16 = compute == DType::BF16;
        match &mut self {
            Self::Dense(_) => {}
            Self::Nf4(weight) => weight.rounded = bf16,
            Self::Int8(weight) => weight.rounded = bf16,
            Self::Ggml(weight) => weight.rounded = bf16,
            Self::OnDevice(weight) => weight.compute = compute,
        }
        self
    }

    /// The same weight in the memory of `device`. A quantised one stays so and is expanded to `compute`, f32 or
    /// bf16, for each product there.
    ///
    /// # Errors
    /// Too little memory.
    pub fn to_device(&self, device: &Device, compute: DType) -> Result<Self> {
        if device.is_cpu() {
            return Ok(self.clone().computed_in(compute));
        }
        let (rows, columns) = self.dims()?;
        let put = |codes: &[u8], scales: &[f32], block, levels: &[f32], form| {
            Ok(Self::OnDevice(OnDevice {
                rows,
                columns,
                form,
                codes: Tensor::from_slice(codes, codes.len(), device)?,
                scales: Tensor::from_slice(scales, scales.len(), device)?,
                block,
                levels: Tensor::from_slice(levels, levels.len(), device)?,
                compute,
            }))
        };
        match self {
            Self::Dense(tensor) => Ok(Self::Dense(tensor.to_device(device)?)),
            Self::Nf4(weight) => put(
                weight.packed(),
                weight.absmax(),
                weight.block(),
                weight.levels(),
                Form::FourBits,
            ),
            Self::Int8(weight) => {
                let codes: Vec<u8> = weight.codes().iter().map(|code| *code as u8).collect();
                put(&codes, weight.absmax(), columns, &[], Form::EightBits)
            }
            Self::Ggml(weight) => {
                let kind = weight.kind();
                put(
                    weight.stored(),
                    &[],
                    kind.block_length(),
                    &[],
                    Form::Ggml(kind),
                )
            }
            Self::OnDevice(_) => Ok(self.clone()),
        }
    }

    /// The stored rows, as numbers of type `T`.
    ///
    /// # Errors
    /// A dense weight that is not contiguous, or a weight that is not on the CPU.
    pub(crate) fn rows<T: Real>(&self) -> Result<Box<dyn Rows<T> + '_>> {
        Ok(match self {
            Self::Dense(tensor) => Box::new(DenseRows::new(tensor)?),
            Self::Nf4(weight) => Box::new(RowRange::whole(weight)),
            Self::Int8(weight) => Box::new(RowRange::whole(weight)),
            Self::Ggml(weight) => Box::new(RowRange::whole(weight)),
            Self::OnDevice(_) => bail!("this product runs on the CPU only, the weight is on a GPU"),
        })
    }

    /// Lends the stored rows, as numbers of type `T`, to `work`.
    ///
    /// # Errors
    /// A dense weight that is not on the CPU or not contiguous, or what `work` gives.
    pub fn with_rows<T: Real, R>(&self, work: impl FnOnce(&dyn Rows<T>) -> Result<R>) -> Result<R> {
        work(&*self.rows()?)
    }
}

/// The rows of a dense weight, converted from their stored type while they are read.
struct DenseRows<'a> {
    storage: StorageRef<'a>,
    start: usize,
    rows: usize,
    columns: usize,
}

impl<'a> DenseRows<'a> {
    fn new(tensor: &'a Tensor) -> Result<Self> {
        let (rows, columns) = host::matrix(tensor, "product", "a weight")?;
        let (storage, layout) = tensor.storage_and_layout();
        let Some((start, _)) = layout.contiguous_offsets() else {
            bail!("a weight must be contiguous, its layout is {layout:?}")
        };
        match &*storage {
            Storage::Cpu(_) => Ok(Self {
                storage,
                start,
                rows,
                columns,
            }),
            _ => bail!(
                "this product runs on the CPU only, the weight is on {:?}",
                tensor.device()
            ),
        }
    }

    fn all<S: candle_core::WithDType>(&self) -> Option<&[S]> {
        let Storage::Cpu(storage) = &*self.storage else {
            return None;
        };
        // Asked first, since candle makes an error with a backtrace of another type, which takes time.
        if storage.dtype() != S::DTYPE {
            return None;
        }
        let values = S::cpu_storage_as_slice(storage).ok()?;
        Some(&values[self.start..self.start + self.rows * self.columns])
    }
}

impl<T: Real> Rows<T> for DenseRows<'_> {
    fn rows(&self) -> usize {
        self.rows
    }

    fn columns(&self) -> usize {
        self.columns
    }

    fn fill(&self, row: usize, columns: Range<usize>, out: &mut [T]) {
        fn convert<S: Copy, T>(from: &[S], out: &mut [T], value: impl Fn(S) -> T) {
            for (out, from) in out.iter_mut().zip(from) {
                *out = value(*from);
            }
        }
        let piece = row * self.columns + columns.start..row * self.columns + columns.end;
        let of = <T as crate::host::num::Float>::of;
        if let Some(values) = self.all::<bf16>() {
            convert(&values[piece], out, |v| of(f64::from(f32::from(v))));
        } else if let Some(values) = self.all::<f32>() {
            convert(&values[piece], out, |v| of(f64::from(v)));
        } else if let Some(values) = self.all::<half::f16>() {
            convert(&values[piece], out, |v| of(f64::from(f32::from(v))));
        } else if let Some(values) = self.all::<f64>() {
            convert(&values[piece], out, of);
        } else {
            unreachable!("weights are floating-point tensors, checked when they are loaded")
        }
    }

    fn dense(&self) -> Option<(&[T], usize)> {
        Some((self.all::<T>()?, self.columns))
    }

    fn dense_bf16(&self) -> Option<(&[bf16], usize)> {
        Some((self.all::<bf16>()?, self.columns))
    }

    fn rounded(&self) -> bool {
        self.all::<bf16>().is_some()
    }

    fn fill_bf16(&self, row: usize, columns: Range<usize>, out: &mut [bf16]) {
        let piece = row * self.columns + columns.start..row * self.columns + columns.end;
        if let Some(values) = self.all::<bf16>() {
            out.copy_from_slice(&values[piece]);
        } else if let Some(values) = self.all::<f32>() {
            round::<f32>(Level::detect(), &values[piece], out);
        } else {
            fill_and_round::<T>(self, row, columns, out);
        }
    }
}

/// [`Rows::fill_bf16`] by way of [`Rows::fill`].
pub(crate) fn fill_and_round<T: Real>(
    matrix: &dyn Rows<T>,
    row: usize,
    columns: Range<usize>,
    out: &mut [bf16],
) {
    const PIECE: usize = 128;
    let mut values = [T::ZERO; PIECE];
    let mut start = columns.start;
    for out in out.chunks_mut(PIECE) {
        let values = &mut values[..out.len()];
        matrix.fill(row, start..start + out.len(), values);
        round::<T>(Level::detect(), values, out);
        start += out.len();
    }
}
