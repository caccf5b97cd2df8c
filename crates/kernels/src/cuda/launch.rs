//! Where a tensor is in the GPU's memory, and one launch of a kernel.
//!
//! Kernels get addresses. The tensors behind them are borrowed until the launch has been enqueued, and memory is
//! freed in the order of the stream, so an address stays good until its kernel has run.

use std::ffi::c_void;
use std::marker::PhantomData;

use candle_core::cuda_backend::cudarc::driver::sys;
use candle_core::cuda_backend::cudarc::driver::{DevicePtr, LaunchConfig, PushKernelArg};
use candle_core::cuda_backend::{CudaDevice, CudaStorageSlice};
use candle_core::{DType, Device, Error, Result, Shape, Storage, Tensor, bail};

/// Kernels that are compiled and loaded together.
#[derive(Clone, Copy)]
pub(super) struct Module {
    name: &'static str,
    /// For compute capability 8.0 and later.
    ptx: &'static str,
}

/// `kernels.cu`
const KERNELS: Module = Module {
    name: "sparsam",
    ptx: include_str!("kernels.ptx"),
};

/// `attention.cu`
pub(super) const ATTENTION: Module = Module {
    name: "sparsam_attention",
    ptx: include_str!("attention.ptx"),
};

/// The GPU a tensor is on.
pub(super) fn device(tensor: &Tensor) -> Result<&CudaDevice> {
    match tensor.device() {
        Device::Cuda(device) => Ok(device),
        other => bail!("a tensor on {other:?} meets others on a GPU"),
    }
}

/// Address of a contiguous tensor's first number.
pub(super) fn address(tensor: &Tensor) -> Result<u64> {
    if !tensor.is_contiguous() {
        let layout = tensor.layout();
        bail!("this operation needs a contiguous tensor, the layout is {layout:?}")
    }
    first(tensor)
}

/// Address of a matrix' first number, and how many numbers lie from one row to the next: its columns may be some of a
/// wider one's.
pub(super) fn rows(tensor: &Tensor) -> Result<(u64, usize)> {
    let (&[_, columns], &[step, 1]) = (tensor.dims(), tensor.stride()) else {
        let layout = tensor.layout();
        bail!("this operation needs a matrix of whole rows, the layout is {layout:?}")
    };
    Ok((first(tensor)?, step.max(columns)))
}

/// Address of a tensor's first number.
fn first(tensor: &Tensor) -> Result<u64> {
    let (storage, layout) = tensor.storage_and_layout();
    let Storage::Cuda(storage) = &*storage else {
        bail!("a tensor on {:?} meets others on a GPU", tensor.device())
    };
    let stream = storage.device.cuda_stream();
    let first = match &storage.slice {
        CudaStorageSlice::F32(slice) => slice.device_ptr(&stream).0,
        CudaStorageSlice::BF16(slice) => slice.device_ptr(&stream).0,
        CudaStorageSlice::F16(slice) => slice.device_ptr(&stream).0,
        CudaStorageSlice::U8(slice) => slice.device_ptr(&stream).0,
        CudaStorageSlice::U32(slice) => slice.device_ptr(&stream).0,
        CudaStorageSlice::I64(slice) => slice.device_ptr(&stream).0,
        _ => bail!(
            "tensors of {:?} are not computed with on a GPU",
            tensor.dtype()
        ),
    };
    Ok(first + (layout.start_offset() * tensor.dtype().size_in_bytes()) as u64)
}

/// A tensor whose numbers are whatever the memory holds: for outputs that are written whole.
pub(super) fn unwritten(shape: impl Into<Shape>, dtype: DType, like: &Tensor) -> Result<Tensor> {
    unwritten_on(shape, dtype, like.device())
}

/// [`unwritten`], on a device.
pub(super) fn unwritten_on(
    shape: impl Into<Shape>,
    dtype: DType,
    device: &Device,
) -> Result<Tensor> {
    #[expect(
        unsafe_code,
        reason = "memory that the next kernel fills is not cleared first"
    )]
    // SAFETY: every caller hands the tensor to a kernel, a product or a copy that writes all of it before anything
    // reads it; the device tests poison such outputs.
    unsafe {
        Tensor::empty(shape, dtype, device)
    }
}

/// Numbers for a kernel, copied to the GPU of `like`.
pub(super) fn upload<T: candle_core::WithDType>(values: Vec<T>, like: &Tensor) -> Result<Tensor> {
    let count = values.len();
    Tensor::from_vec(values, count, like.device())
}

enum Argument {
    Address(u64),
    Int(i32),
    Long(i64),
    Word(u32),
    Float(f32),
}

/// A launch being put together: the kernel's arguments in their order, then [`Launch::run`].
pub(super) struct Launch<'a> {
    device: &'a CudaDevice,
    kernel: &'a str,
    module: Module,
    arguments: Vec<Argument>,
    tensors: PhantomData<&'a Tensor>,
}

impl<'a> Launch<'a> {
    pub(super) fn new(kernel: &'a str, device: &'a CudaDevice) -> Self {
        Self {
            device,
            kernel,
            module: KERNELS,
            arguments: Vec::with_capacity(16),
            tensors: PhantomData,
        }
    }

    /// A kernel of another module than `kernels.cu`.
    pub(super) fn of_module(mut self, module: Module) -> Self {
        self.module = module;
        self
    }

    /// A tensor that must be of `dtype`.
    pub(super) fn of(mut self, tensor: &'a Tensor, dtype: DType) -> Result<Self> {
        if tensor.dtype() != dtype {
            bail!(
                "`{}`: expected a tensor of {dtype:?}, found {:?}",
                self.kernel,
                tensor.dtype()
            );
        }
        self.arguments.push(Argument::Address(address(tensor)?));
        Ok(self)
    }

    pub(super) fn floats(self, tensor: &'a Tensor) -> Result<Self> {
        self.of(tensor, DType::F32)
    }

    pub(super) fn words(self, tensor: &'a Tensor) -> Result<Self> {
        self.of(tensor, DType::U32)
    }

    pub(super) fn longs(self, tensor: &'a Tensor) -> Result<Self> {
        self.of(tensor, DType::I64)
    }

    pub(super) fn bytes(self, tensor: &'a Tensor) -> Result<Self> {
        self.of(tensor, DType::U8)
    }

    pub(super) fn narrow(self, tensor: &'a Tensor) -> Result<Self> {
        self.of(tensor, DType::BF16)
    }

    /// A null pointer, where a kernel takes one.
    pub(super) fn null(mut self) -> Self {
        self.arguments.push(Argument::Address(0));
        self
    }

    /// A tensor of f32 or bf16, where a kernel takes a place for each and uses the one that is not null.
    pub(super) fn wide_or_narrow(self, tensor: &'a Tensor) -> Result<Self> {
        match tensor.dtype() {
            DType::F32 => Ok(self.floats(tensor)?.null()),
            _ => self.null().narrow(tensor),
        }
    }

    pub(super) fn floats_or_null(self, tensor: Option<&'a Tensor>) -> Result<Self> {
        match tensor {
            Some(tensor) => self.floats(tensor),
            None => Ok(self.null()),
        }
    }

    pub(super) fn words_or_null(self, tensor: Option<&'a Tensor>) -> Result<Self> {
        match tensor {
            Some(tensor) => self.words(tensor),
            None => Ok(self.null()),
        }
    }

    pub(super) fn int(mut self, value: usize) -> Result<Self> {
        self.arguments
            .push(Argument::Int(i32::try_from(value).map_err(Error::wrap)?));
        Ok(self)
    }

    pub(super) fn long(mut self, value: usize) -> Self {
        self.arguments.push(Argument::Long(value as i64));
        self
    }

    pub(super) fn word(mut self, value: u32) -> Self {
        self.arguments.push(Argument::Word(value));
        self
    }

    pub(super) fn float(mut self, value: f64) -> Self {
        self.arguments.push(Argument::Float(value as f32));
        self
    }

    /// One thread for each of `count` numbers.
    pub(super) fn each(self, count: usize) -> Result<()> {
        const BLOCK: usize = 256;
        let blocks = count.div_ceil(BLOCK);
        self.run((blocks, 1), (BLOCK, 1), 0)
    }

    /// One thread for four of `count` numbers each.
    pub(super) fn fours(self, count: usize) -> Result<()> {
        self.each(count.div_ceil(4))
    }

    /// A block for each of `rows` rows, as wide as a row of `width` numbers needs.
    pub(super) fn rows(self, rows: usize, width: usize) -> Result<()> {
        let threads = width.div_ceil(32).clamp(1, 8) * 32;
        self.run((rows, 1), (threads, 1), 0)
    }

    /// Enqueues the kernel on `grid` of `block`s with so many bytes of shared memory; nothing, for an empty grid.
    pub(super) fn run(
        self,
        grid: (usize, usize),
        block: (usize, usize),
        shared: usize,
    ) -> Result<()> {
        if grid.0 == 0 || grid.1 == 0 {
            return Ok(());
        }
        let kernel =
            self.device
                .get_or_load_custom_func(self.kernel, self.module.name, self.module.ptx)?;
        if shared > 48 << 10 {
            use sys::CUfunction_attribute_enum::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
            kernel
                .set_attribute(
                    CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES,
                    shared as i32,
                )
                .map_err(Error::wrap)?;
        }
        let config = LaunchConfig {
            grid_dim: (grid.0 as u32, grid.1 as u32, 1),
            block_dim: (block.0 as u32, block.1 as u32, 1),
            shared_mem_bytes: shared as u32,
        };
        let mut builder = kernel.builder();
        for argument in &self.arguments {
            match argument {
                Argument::Address(value) => builder.arg(value),
                Argument::Int(value) => builder.arg(value),
                Argument::Long(value) => builder.arg(value),
                Argument::Word(value) => builder.arg(value),
                Argument::Float(value) => builder.arg(value),
            };
        }
        #[expect(unsafe_code, reason = "a kernel's launch")]
        // SAFETY: the arguments are those of the kernel's declaration in `kernels.cu`, of types and shapes that
        // the callers check, and the tensors live until the launch is enqueued. The device tests compare
        // every kernel with its portable twin.
        unsafe {
            builder.launch(config).map_err(Error::wrap)?;
        }
        Ok(())
    }
}

fn checked(what: &str, code: sys::CUresult) -> Result<()> {
    match code {
        sys::CUresult::CUDA_SUCCESS => Ok(()),
        code => bail!("CUDA: {what} failed with {code:?}"),
    }
}

/// Keeps freed memory in the pool and leaves out candle's events between streams.
pub(super) fn prepare(device: &Device) -> Result<()> {
    let Device::Cuda(cuda) = device else {
        bail!("{device:?} is no GPU")
    };
    #[expect(unsafe_code, reason = "settings of the driver")]
    // SAFETY: all work of this process is on the one stream of `cuda`, but for the copies of `parked.rs`, which waits
    // and lets wait itself; the attribute is a u64, as the driver's documentation says, and lives through the call.
    unsafe {
        cuda.disable_event_tracking();
        let mut keep = u64::MAX;
        let attribute = sys::CUmemPool_attribute::CU_MEMPOOL_ATTR_RELEASE_THRESHOLD;
        let pool = pool(cuda)?;
        let value = (&raw mut keep).cast::<c_void>();
        checked(
            "keeping freed memory",
            sys::cuMemPoolSetAttribute(pool, attribute, value),
        )
    }
}

#[expect(unsafe_code, reason = "a question to the driver")]
/// # Safety
/// None beyond the driver's own: the handle is only read.
unsafe fn pool(device: &CudaDevice) -> Result<sys::CUmemoryPool> {
    let mut pool = std::ptr::null_mut();
    let stream = device.cuda_stream();
    let ordinal = stream.context().cu_device();
    // SAFETY: `pool` is a place for the handle, the device is that of an open context.
    unsafe {
        checked(
            "finding the memory pool",
            sys::cuDeviceGetDefaultMemPool(&raw mut pool, ordinal),
        )?;
    }
    Ok(pool)
}

/// Bytes in use of the pool, now and at most.
pub(super) fn memory(device: &Device) -> Result<(u64, u64)> {
    let Device::Cuda(cuda) = device else {
        bail!("{device:?} is no GPU")
    };
    let read = |attribute| {
        let mut value = 0u64;
        #[expect(unsafe_code, reason = "a question to the driver")]
        // SAFETY: both attributes are u64, as the driver's documentation says.
        unsafe {
            let pool = pool(cuda)?;
            let value = (&raw mut value).cast::<c_void>();
            checked(
                "reading the memory pool",
                sys::cuMemPoolGetAttribute(pool, attribute, value),
            )?;
        }
        Ok::<u64, Error>(value)
    };
    Ok((
        read(sys::CUmemPool_attribute::CU_MEMPOOL_ATTR_USED_MEM_CURRENT)?,
        read(sys::CUmemPool_attribute::CU_MEMPOOL_ATTR_USED_MEM_HIGH)?,
    ))
}
