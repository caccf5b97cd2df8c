//! Slices of CPU tensors: the border between candle's tensors and the loops of this crate.
//!
//! [`view`] borrows a contiguous CPU tensor as a slice, [`update`] lends it mutably for an update in
//! place (through candle's in-place hook, the one public way to a storage), and [`tensor`] makes a
//! tensor of a vector without a copy. Everything else in this crate is loops over slices.

use std::cell::RefCell;
use std::marker::PhantomData;
use std::mem::MaybeUninit;
use std::ops::{Deref, Range};
use std::sync::atomic::{AtomicUsize, Ordering};

use rayon::prelude::*;

use candle_core::{
    CpuStorage, DType, Device, InplaceOp1, Layout, Result, Shape, Storage, Tensor, WithDType, bail,
};

/// A floating-point element type that the kernels compute in.
///
/// Training runs in `f32`; `f64` exists so that every adjoint can be checked by finite differences.
pub trait Element: WithDType + num::Float {}

impl Element for f32 {}
impl Element for f64 {}

/// The arithmetic the kernels need of an [`Element`], without a dependency of its own.
pub mod num {
    use std::iter::Sum;
    use std::ops::Neg;

    /// Floating-point arithmetic shared by `f32` and `f64`.
    pub trait Float:
        Copy + Send + Sync + Default + PartialOrd + Neg<Output = Self> + Sum + 'static
    {
        /// `0`.
        const ZERO: Self;
        /// `1`.
        const ONE: Self;
        /// `-∞`.
        const NEG_INFINITY: Self;
        /// Nearest value to `v`.
        fn of(v: f64) -> Self;
        /// The value as `f64`, exact.
        fn to_double(self) -> f64;
        /// `eˣ`.
        fn exp(self) -> Self;
        /// Natural logarithm.
        fn ln(self) -> Self;
        /// Square root.
        fn sqrt(self) -> Self;
        /// Hyperbolic tangent.
        fn tanh(self) -> Self;
        /// Absolute value.
        fn abs(self) -> Self;
        /// The larger of two numbers.
        fn max(self, other: Self) -> Self;
        /// Whether the value is neither infinite nor NaN.
        fn is_finite(self) -> bool;
        /// The bits of the nearest bf16; halfway between two it is the even one. NaN stays NaN.
        fn to_bf16_bits(self) -> u16;
        /// The number of these bits of bf16, exact.
        fn from_bf16_bits(bits: u16) -> Self;
    }

    macro_rules! float {
        ($t:ty) => {
            impl Float for $t {
                const ZERO: Self = 0.0;
                const ONE: Self = 1.0;
                const NEG_INFINITY: Self = <$t>::NEG_INFINITY;
                #[inline(always)]
                fn of(v: f64) -> Self {
                    v as $t
                }
                #[inline(always)]
                fn to_double(self) -> f64 {
                    self as f64
                }
                #[inline(always)]
                fn exp(self) -> Self {
                    <$t>::exp(self)
                }
                #[inline(always)]
                fn ln(self) -> Self {
                    <$t>::ln(self)
                }
                #[inline(always)]
                fn sqrt(self) -> Self {
                    <$t>::sqrt(self)
                }
                #[inline(always)]
                fn tanh(self) -> Self {
                    <$t>::tanh(self)
                }
                #[inline(always)]
                fn abs(self) -> Self {
                    <$t>::abs(self)
                }
                #[inline(always)]
                fn max(self, other: Self) -> Self {
                    if other > self { other } else { self }
                }
                #[inline(always)]
                fn is_finite(self) -> bool {
                    <$t>::is_finite(self)
                }
                #[inline(always)]
                #[allow(clippy::unnecessary_cast, reason = "f32 is one of the types")]
                fn to_bf16_bits(self) -> u16 {
                    // Without a branch, so that loops over it are vectorised. Adding just under half of what
                    // is cut off, and one more where the last bit kept is odd, carries into what is kept.
                    let bits = (self as f32).to_bits();
                    let rounded = bits.wrapping_add(0x7FFF + (bits >> 16 & 1));
                    let quiet = bits | 0x40_0000;
                    let nan = bits & 0x7FFF_FFFF > 0x7F80_0000;
                    ((if nan { quiet } else { rounded }) >> 16) as u16
                }
                #[inline(always)]
                fn from_bf16_bits(bits: u16) -> Self {
                    f32::from_bits(u32::from(bits) << 16).into()
                }
            }
        };
    }

    float!(f32);
    float!(f64);
}

/// A contiguous CPU tensor borrowed as a slice.
pub struct View<G, T> {
    guard: G,
    range: Range<usize>,
    element: PhantomData<T>,
}

impl<G: Deref<Target = Storage>, T: WithDType> Deref for View<G, T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        let Storage::Cpu(storage) = &*self.guard else {
            unreachable!("`view` checked that the storage is on the CPU")
        };
        let slice = T::cpu_storage_as_slice(storage).expect("`view` checked the element type");
        &slice[self.range.clone()]
    }
}

/// Borrows a contiguous CPU tensor of element type `T` as a slice, in row-major order.
///
/// # Errors
/// A tensor on another device, of another element type, or not contiguous.
pub fn view<T: WithDType>(tensor: &Tensor) -> Result<View<impl Deref<Target = Storage> + '_, T>> {
    let (guard, layout) = tensor.storage_and_layout();
    let range = contiguous(layout)?;
    match &*guard {
        Storage::Cpu(storage) => {
            T::cpu_storage_as_slice(storage)?;
        }
        _ => bail!(
            "this operation runs on the CPU only, the tensor is on {:?}",
            tensor.device()
        ),
    }
    Ok(View {
        guard,
        range,
        element: PhantomData,
    })
}

/// Lends a contiguous CPU tensor as a mutable slice for an update in place.
///
/// The closure must not read the same tensor through [`view`]: its storage is locked meanwhile.
///
/// # Errors
/// As [`view`], and what the closure returns.
pub fn update<T: WithDType, R>(
    tensor: &Tensor,
    change: impl FnOnce(&mut [T]) -> Result<R>,
) -> Result<R> {
    struct Change<F, T, R> {
        change: RefCell<Option<F>>,
        result: RefCell<Option<R>>,
        element: PhantomData<T>,
    }
    impl<T: WithDType, R, F: FnOnce(&mut [T]) -> Result<R>> InplaceOp1 for Change<F, T, R> {
        fn name(&self) -> &'static str {
            "update"
        }

        fn cpu_fwd(&self, storage: &mut CpuStorage, layout: &Layout) -> Result<()> {
            let range = contiguous(layout)?;
            let Some(change) = self.change.borrow_mut().take() else {
                bail!("an update in place was run twice")
            };
            let slice = as_mut_slice::<T>(storage)?;
            *self.result.borrow_mut() = Some(change(&mut slice[range])?);
            Ok(())
        }
    }
    let operation = Change {
        change: RefCell::new(Some(change)),
        result: RefCell::new(None),
        element: PhantomData,
    };
    tensor.inplace_op1(&operation)?;
    match operation.result.into_inner() {
        Some(result) => Ok(result),
        None => bail!("an update in place did not run"),
    }
}

/// So many zeros, written by all threads where they are many.
#[expect(
    unsafe_code,
    reason = "the numbers are written in parallel before the vector has them"
)]
pub(crate) fn zeroed<T: Element>(length: usize) -> Vec<T> {
    const CHUNK: usize = 1 << 15;
    if length < 2 * CHUNK {
        return vec![T::ZERO; length];
    }
    let mut values = Vec::with_capacity(length);
    values.spare_capacity_mut()[..length]
        .par_chunks_mut(CHUNK)
        .for_each(|chunk| {
            for value in chunk {
                value.write(T::ZERO);
            }
        });
    // SAFETY: the first `length` numbers of the vector's room have been written.
    unsafe { values.set_len(length) };
    values
}

/// A vector that is being written, chunk by chunk in parallel.
///
/// Each chunk is cleared just before it is lent, so that it is in the cache by then: to clear the whole first would
/// take as long as many a loop that fills it.
pub(crate) struct Fresh<T> {
    values: Vec<T>,
    length: usize,
    /// Numbers of the chunks that have been lent.
    written: AtomicUsize,
}

impl<T: Copy + Default + Send + Sync> Fresh<T> {
    pub(crate) fn new(length: usize) -> Self {
        Self {
            values: Vec::with_capacity(length),
            length,
            written: AtomicUsize::new(0),
        }
    }

    /// All chunks, of zeros.
    ///
    /// # Panics
    /// If some have been lent before.
    pub(crate) fn par_chunks_mut(
        &mut self,
        size: usize,
    ) -> impl IndexedParallelIterator<Item = &mut [T]> {
        let written = &self.written;
        assert_eq!(written.load(Ordering::Relaxed), 0, "chunks are lent once");
        self.values.spare_capacity_mut()[..self.length]
            .par_chunks_mut(size.max(1))
            .map(|places| cleared(places, written))
    }

    /// All chunks, for who writes each in several turns.
    ///
    /// # Panics
    /// If some have been lent before.
    pub(crate) fn chunks(&mut self, size: usize) -> impl Iterator<Item = Chunk<'_, T>> {
        let written = &self.written;
        assert_eq!(written.load(Ordering::Relaxed), 0, "chunks are lent once");
        self.values.spare_capacity_mut()[..self.length]
            .chunks_mut(size.max(1))
            .map(|places| Chunk::Untouched(places, written))
    }

    /// The vector.
    ///
    /// # Panics
    /// If a chunk has not been lent.
    #[expect(unsafe_code, reason = "the vector holds all numbers now")]
    pub(crate) fn done(mut self) -> Vec<T> {
        assert_eq!(
            self.written.load(Ordering::Relaxed),
            self.length,
            "every chunk is written"
        );
        // SAFETY: chunks do not overlap and are lent once, so that all places have been written.
        unsafe { self.values.set_len(self.length) };
        self.values
    }
}

/// A chunk of a [`Fresh`].
pub(crate) enum Chunk<'a, T> {
    /// Before its first turn.
    Untouched(&'a mut [MaybeUninit<T>], &'a AtomicUsize),
    Numbers(&'a mut [T]),
}

impl<T: Copy + Default> Chunk<'_, T> {
    /// The numbers, zeros at first.
    pub(crate) fn numbers(&mut self) -> &mut [T] {
        if let Self::Untouched(places, written) = self {
            let numbers = cleared(std::mem::take(places), written);
            *self = Self::Numbers(numbers);
        }
        match self {
            Self::Numbers(numbers) => numbers,
            Self::Untouched(..) => unreachable!("it was cleared above"),
        }
    }
}

/// Places with zeros in them, which count as written.
fn cleared<'a, T: Copy + Default>(
    places: &'a mut [MaybeUninit<T>],
    written: &AtomicUsize,
) -> &'a mut [T] {
    for place in places.iter_mut() {
        place.write(T::default());
    }
    written.fetch_add(places.len(), Ordering::Relaxed);
    // SAFETY: every place has been written; a place that holds a number is one.
    #[expect(unsafe_code, reason = "the places hold numbers now")]
    unsafe {
        &mut *(std::ptr::from_mut(places) as *mut [T])
    }
}

/// Makes a CPU tensor of `values` without copying them.
pub fn tensor<T: WithDType>(values: Vec<T>, shape: impl Into<Shape>) -> Result<Tensor> {
    Tensor::from_vec(values, shape.into(), &Device::Cpu)
}

/// A tensor in the host's memory, contiguous: itself if it is there already, otherwise a copy.
pub fn fetch(tensor: &Tensor) -> Result<Tensor> {
    tensor.to_device(&Device::Cpu)?.contiguous()
}

/// Copies the f32 numbers of `from` into `to`, of f32 or bf16 and on any device, in place.
///
/// # Errors
/// Shapes that differ, or other types.
pub fn copy_into(from: &Tensor, to: &Tensor) -> Result<()> {
    if from.dims() != to.dims() {
        bail!("`copy_into`: {:?} and {:?} differ", from.dims(), to.dims());
    }
    let from = from.to_device(to.device())?;
    #[cfg(feature = "cuda")]
    if to.device().is_cuda() {
        return crate::cuda::copy_into(&from, to);
    }
    let from = view::<f32>(&from)?;
    match to.dtype() {
        DType::BF16 => update(to, |to: &mut [half::bf16]| {
            for (to, from) in to.iter_mut().zip(from.iter()) {
                *to = half::bf16::from_f32(*from);
            }
            Ok(())
        }),
        _ => update(to, |to: &mut [f32]| {
            to.copy_from_slice(&from);
            Ok(())
        }),
    }
}

/// The numbers of an f32 tensor in bf16, where it is; itself, if it is of that.
///
/// # Errors
/// Another type.
pub fn to_bf16(tensor: &Tensor) -> Result<Tensor> {
    #[cfg(feature = "cuda")]
    if tensor.device().is_cuda() {
        return crate::cuda::to_bf16(tensor);
    }
    tensor.to_dtype(DType::BF16)
}

/// Sets all numbers of an f32 tensor to zero, in place.
///
/// # Errors
/// Another type.
pub fn clear(tensor: &Tensor) -> Result<()> {
    #[cfg(feature = "cuda")]
    if tensor.device().is_cuda() {
        return crate::cuda::clear(tensor);
    }
    update(tensor, |values: &mut [f32]| {
        values.fill(0.0);
        Ok(())
    })
}

fn contiguous(layout: &Layout) -> Result<Range<usize>> {
    match layout.contiguous_offsets() {
        Some((start, end)) => Ok(start..end),
        None => bail!("this operation needs a contiguous tensor, the layout is {layout:?}"),
    }
}

/// The storage's vector as a mutable slice of `T`.
fn as_mut_slice<T: WithDType>(storage: &mut CpuStorage) -> Result<&mut [T]> {
    let found = candle_core::backend::BackendStorage::dtype(storage);
    let slice: Option<&mut [T]> = match storage {
        CpuStorage::F32(values) => same_type::<f32, T>(values),
        CpuStorage::F64(values) => same_type::<f64, T>(values),
        CpuStorage::BF16(values) => same_type::<half::bf16, T>(values),
        CpuStorage::F16(values) => same_type::<half::f16, T>(values),
        CpuStorage::U8(values) => same_type::<u8, T>(values),
        CpuStorage::U32(values) => same_type::<u32, T>(values),
        _ => None,
    };
    match slice {
        Some(slice) => Ok(slice),
        None => bail!("expected a tensor of {:?}, found {found:?}", T::DTYPE),
    }
}

#[expect(clippy::ptr_arg, reason = "the vector itself is compared by type")]
fn same_type<S: 'static, T: 'static>(values: &mut Vec<S>) -> Option<&mut [T]> {
    let any: &mut dyn std::any::Any = values;
    any.downcast_mut::<Vec<T>>().map(Vec::as_mut_slice)
}

/// Runs `$body` with the type alias `$t` set to the element type of `$tensor` (`f32` or `f64`).
#[macro_export]
macro_rules! by_element {
    ($tensor:expr, $t:ident => $body:expr) => {
        match $tensor.dtype() {
            ::candle_core::DType::F32 => {
                type $t = f32;
                $body
            }
            ::candle_core::DType::F64 => {
                type $t = f64;
                $body
            }
            other => ::candle_core::bail!("expected a tensor of f32 (or f64), found {other:?}"),
        }
    };
}

/// Rows and columns of a two-dimensional tensor, with the operation's name in the error.
pub(crate) fn matrix(tensor: &Tensor, operation: &str, what: &str) -> Result<(usize, usize)> {
    match tensor.dims() {
        &[rows, columns] => Ok((rows, columns)),
        other => bail!("`{operation}`: {what} must have two dimensions, found {other:?}"),
    }
}

/// Zeros of the given element type.
pub fn zeros(shape: impl Into<Shape>, dtype: DType) -> Result<Tensor> {
    Tensor::zeros(shape, dtype, &Device::Cpu)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn updates_in_place_and_reads_back() -> Result<()> {
        let x = tensor(vec![1f32, 2.0, 3.0, 4.0], (2, 2))?;
        let sum = update(&x, |values: &mut [f32]| {
            values[1] = 5.0;
            Ok(values.iter().sum::<f32>())
        })?;
        assert_eq!(sum, 13.0);
        assert_eq!(&*view::<f32>(&x)?, [1.0, 5.0, 3.0, 4.0]);
        let row = x.narrow(0, 1, 1)?;
        assert_eq!(&*view::<f32>(&row)?, [3.0, 4.0]);
        Ok(())
    }

    #[test]
    fn zeros_are_all_there() {
        for length in [0, 1, (1 << 16) - 1, 1 << 16, 100_003] {
            let zeros = zeroed::<f32>(length);
            assert!(
                zeros.len() == length && zeros.iter().all(|zero| *zero == 0.0),
                "{length}"
            );
        }
    }

    #[test]
    fn what_is_fresh_is_zero_until_it_is_written() {
        for length in [0, 1, 7, 1000, 100_003] {
            let mut fresh = Fresh::<f32>::new(length);
            fresh
                .par_chunks_mut(64)
                .enumerate()
                .for_each(|(chunk, numbers)| {
                    assert!(numbers.iter().all(|number| *number == 0.0));
                    numbers[0] = chunk as f32 + 1.0;
                });
            let values = fresh.done();
            assert_eq!(values.len(), length);
            for (i, value) in values.iter().enumerate() {
                let expected = if i % 64 == 0 {
                    i as f32 / 64.0 + 1.0
                } else {
                    0.0
                };
                assert_eq!(*value, expected);
            }
        }
    }

    #[test]
    fn chunks_are_written_in_several_turns() {
        let mut fresh = Fresh::<f32>::new(10);
        let mut chunks: Vec<_> = fresh.chunks(4).collect();
        for turn in 0..2 {
            for chunk in &mut chunks {
                for number in chunk.numbers().iter_mut().skip(turn) {
                    *number += 1.0;
                }
            }
        }
        drop(chunks);
        let expected = [1.0, 2.0, 2.0, 2.0, 1.0, 2.0, 2.0, 2.0, 1.0, 2.0];
        assert_eq!(fresh.done(), expected);
    }

    #[test]
    #[should_panic(expected = "every chunk is written")]
    fn what_is_fresh_is_not_given_out_half_written() {
        let mut fresh = Fresh::<f32>::new(100);
        fresh.par_chunks_mut(10).take(9).for_each(|_| {});
        let _ = fresh.done();
    }

    #[test]
    fn refuses_what_it_cannot_lend() -> Result<()> {
        let x = tensor(vec![1f32, 2.0, 3.0, 4.0], (2, 2))?;
        assert!(view::<f64>(&x).is_err());
        assert!(view::<f32>(&x.t()?).is_err());
        assert!(update(&x, |_: &mut [f64]| Ok(())).is_err());
        Ok(())
    }
}
