//! Tensors that wait in pinned memory of the host, copied by a second stream beside the work of the first.
//!
//! The second stream does nothing but these copies, in their order. Each waits for what the first had been asked for
//! until then; the first waits for a copy before it writes to memory that the copy reads, or reads what it writes.
//! Pinned memory is slow to get, so it is kept for the next tensor: only the second stream touches it, whose order keeps
//! one copy from the next.

use std::ffi::c_void;
use std::sync::{Arc, Mutex, PoisonError};

use candle_core::cuda_backend::cudarc::driver::{CudaEvent, CudaStream, result, sys};
use candle_core::{DType, Device, Error, Result, Shape, Tensor, bail};

use super::launch::{address, device, unwritten_on};

/// What pinned memory is rounded up to, so that batches of nearly one length share it.
const PIECE: usize = 2 << 20;

/// Pinned memory of the host.
#[derive(Clone, Copy)]
struct Pinned {
    address: *mut c_void,
    bytes: usize,
}

#[expect(unsafe_code, reason = "an address that one owner has")]
// SAFETY: nobody but its owner knows the address, and the driver takes it from any thread.
unsafe impl Send for Pinned {}

/// The second stream of one GPU, and pinned memory that nothing uses now.
struct Beside {
    stream: Arc<CudaStream>,
    free: Vec<Pinned>,
}

static ALL: Mutex<Vec<Beside>> = Mutex::new(Vec::new());

impl Beside {
    /// That of the GPU with this stream.
    fn with<R>(main: &CudaStream, work: impl FnOnce(&mut Self) -> Result<R>) -> Result<R> {
        let mut all = ALL.lock().unwrap_or_else(PoisonError::into_inner);
        let of_main = |beside: &&mut Self| beside.stream.context() == main.context();
        if let Some(known) = all.iter_mut().find(of_main) {
            return work(known);
        }
        let stream = main.context().new_stream().map_err(Error::wrap)?;
        let free = Vec::new();
        let mut new = Self { stream, free };
        let result = work(&mut new);
        all.push(new);
        result
    }

    /// The smallest free piece that holds so many bytes, or a new one.
    fn room(&mut self, bytes: usize) -> Result<Pinned> {
        let holds = |at: &usize| self.free[*at].bytes >= bytes;
        let smallest = (0..self.free.len())
            .filter(holds)
            .min_by_key(|at| self.free[*at].bytes);
        if let Some(smallest) = smallest {
            return Ok(self.free.swap_remove(smallest));
        }
        // One that is too small makes room for the new one, so that they do not pile up.
        if let Some(small) = self.free.pop() {
            self.stream.synchronize().map_err(Error::wrap)?;
            #[expect(unsafe_code, reason = "memory of the driver's")]
            // SAFETY: it came of `malloc_host`, its one owner is here, and its last copy is done.
            unsafe { result::free_host(small.address) }.map_err(Error::wrap)?;
        }
        let bytes = bytes.next_multiple_of(PIECE);
        #[expect(unsafe_code, reason = "memory of the driver's")]
        // SAFETY: a plain request, whose flags ask for nothing special.
        let address = unsafe { result::malloc_host(bytes, 0) }.map_err(Error::wrap)?;
        Ok(Pinned { address, bytes })
    }

    /// Enqueues a copy behind all that was asked of `main`; the event is when it is done.
    ///
    /// # Safety
    /// Both places hold the bytes, and stay until `main` has waited for the event.
    #[expect(unsafe_code, reason = "a copy by the driver")]
    unsafe fn copy(
        &self,
        main: &CudaStream,
        copy: impl FnOnce(sys::CUstream) -> sys::CUresult,
    ) -> Result<CudaEvent> {
        self.stream.join(main).map_err(Error::wrap)?;
        let code = copy(self.stream.cu_stream());
        code.result().map_err(Error::wrap)?;
        self.stream.record_event(None).map_err(Error::wrap)
    }
}

enum State {
    /// The tensor as it was, until it has been copied.
    Leaving(Tensor, CudaEvent),
    Away,
    /// The tensor as it will be.
    Returning(Tensor, CudaEvent),
}

/// A tensor of a GPU in pinned memory of the host, see [`crate::parked::Parked`].
pub(crate) struct Parked {
    main: Arc<CudaStream>,
    device: Device,
    shape: Shape,
    dtype: DType,
    pinned: Pinned,
    state: State,
}

impl Parked {
    pub(crate) fn new(tensor: Tensor) -> Result<Self> {
        let main = device(&tensor)?.cuda_stream();
        let from = address(&tensor)?;
        let bytes = tensor.elem_count() * tensor.dtype().size_in_bytes();
        let (pinned, copied) = Beside::with(&main, |beside| {
            let pinned = beside.room(bytes)?;
            let to = pinned.address;
            #[expect(unsafe_code, reason = "a copy by the driver")]
            // SAFETY: both hold so many bytes. The tensor stays in `state`, from where it is dropped only when `main`,
            // on which its memory is given back, has waited; the pinned memory is nobody else's.
            let copied = unsafe {
                beside.copy(&main, |stream| {
                    sys::cuMemcpyDtoHAsync_v2(to, from, bytes, stream)
                })
            };
            match copied {
                Ok(copied) => Ok((pinned, copied)),
                Err(error) => {
                    beside.free.push(pinned);
                    Err(error)
                }
            }
        })?;
        Ok(Self {
            main,
            device: tensor.device().clone(),
            shape: tensor.shape().clone(),
            dtype: tensor.dtype(),
            pinned,
            state: State::Leaving(tensor, copied),
        })
    }

    /// Makes the stream of the GPU's work wait for the copy that is under way, if one is; its tensor then.
    fn settle(&mut self) -> Result<Option<Tensor>> {
        match std::mem::replace(&mut self.state, State::Away) {
            State::Away => Ok(None),
            State::Leaving(tensor, copied) | State::Returning(tensor, copied) => {
                self.main.wait(&copied).map_err(Error::wrap)?;
                Ok(Some(tensor))
            }
        }
    }

    pub(crate) fn leave(&mut self) -> Result<()> {
        if matches!(self.state, State::Leaving(..)) {
            self.settle()?;
        }
        Ok(())
    }

    pub(crate) fn fetch(&mut self) -> Result<()> {
        self.leave()?;
        if matches!(self.state, State::Returning(..)) {
            return Ok(());
        }
        let tensor = unwritten_on(self.shape.clone(), self.dtype, &self.device)?;
        let (from, to) = (self.pinned.address, address(&tensor)?);
        let bytes = self.shape.elem_count() * self.dtype.size_in_bytes();
        #[expect(unsafe_code, reason = "a copy by the driver")]
        // SAFETY: both hold so many bytes. The tensor's memory was given out in the order of `main`, which the copy
        // waits for, and `settle` makes `main` wait for the copy before the tensor is handed out or dropped.
        let copied = Beside::with(&self.main, |beside| unsafe {
            beside.copy(&self.main, |stream| {
                sys::cuMemcpyHtoDAsync_v2(to, from, bytes, stream)
            })
        })?;
        self.state = State::Returning(tensor, copied);
        Ok(())
    }

    pub(crate) fn into_tensor(mut self) -> Result<Tensor> {
        self.fetch()?;
        match self.settle()? {
            Some(tensor) => Ok(tensor),
            None => bail!("a tensor that waited in the host's memory is not there"),
        }
    }
}

impl Drop for Parked {
    fn drop(&mut self) {
        // A stream that cannot be told to wait has failed, and with it all that follows.
        let _ = self.settle();
        let _ = Beside::with(&self.main, |beside| {
            beside.free.push(self.pinned);
            Ok(())
        });
    }
}
