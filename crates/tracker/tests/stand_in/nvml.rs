//! A stand-in for `libnvidia-ml.so` with NVML's own C interface, built by `tests/nvml.rs`. It pretends to
//! have two GPUs. Their counters and powers stand in the file named by `STAND_IN_NVML`, one GPU a line:
//! `millijoules milliwatts mig`, where `-` is "not supported" and `mig` is 1 for a GPU that is split.

#![crate_type = "cdylib"]
#![allow(non_snake_case)]

use std::ffi::{c_char, c_int, c_uint, c_ulonglong, c_void};

const SUCCESS: c_int = 0;
const INVALID_ARGUMENT: c_int = 2;
const NOT_SUPPORTED: c_int = 3;

#[unsafe(no_mangle)]
pub extern "C" fn nvmlInit_v2() -> c_int {
    SUCCESS
}

#[unsafe(no_mangle)]
pub extern "C" fn nvmlShutdown() -> c_int {
    SUCCESS
}

#[unsafe(no_mangle)]
pub extern "C" fn nvmlErrorString(_: c_int) -> *const c_char {
    c"stand-in".as_ptr()
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetCount_v2(count: *mut c_uint) -> c_int {
    unsafe { *count = 2 };
    SUCCESS
}

/// A handle is the index plus one, since a null handle is none.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetHandleByIndex_v2(index: c_uint, device: *mut *mut c_void) -> c_int {
    if index >= 2 {
        return INVALID_ARGUMENT;
    }
    unsafe { *device = (index as usize + 1) as *mut c_void };
    SUCCESS
}

unsafe fn write(text: &str, out: *mut c_char, length: c_uint) -> c_int {
    if text.len() >= length as usize {
        return 7; // NVML_ERROR_INSUFFICIENT_SIZE
    }
    unsafe {
        std::ptr::copy_nonoverlapping(text.as_ptr().cast(), out, text.len());
        *out.add(text.len()) = 0;
    }
    SUCCESS
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetUUID(device: *mut c_void, out: *mut c_char, length: c_uint) -> c_int {
    unsafe { write(&format!("GPU-stand-in-{}", device as usize - 1), out, length) }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetName(_: *mut c_void, out: *mut c_char, length: c_uint) -> c_int {
    unsafe { write("Stand-in GPU", out, length) }
}

/// The column of the device's line, where it is a number.
fn figure(device: *mut c_void, column: usize) -> Option<u64> {
    let text = std::fs::read_to_string(std::env::var_os("STAND_IN_NVML")?).ok()?;
    text.lines().nth(device as usize - 1)?.split(' ').nth(column)?.parse().ok()
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetTotalEnergyConsumption(device: *mut c_void, out: *mut c_ulonglong) -> c_int {
    let Some(millijoules) = figure(device, 0) else {
        return NOT_SUPPORTED;
    };
    unsafe { *out = millijoules };
    SUCCESS
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetPowerUsage(device: *mut c_void, out: *mut c_uint) -> c_int {
    let Some(milliwatts) = figure(device, 1) else {
        return NOT_SUPPORTED;
    };
    unsafe { *out = milliwatts as c_uint };
    SUCCESS
}

/// `nvmlPciInfo_t`.
#[repr(C)]
pub struct PciInfo {
    bus_id_legacy: [c_char; 16],
    domain: c_uint,
    bus: c_uint,
    device: c_uint,
    pci_device_id: c_uint,
    pci_sub_system_id: c_uint,
    bus_id: [c_char; 32],
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetPciInfo_v3(device: *mut c_void, out: *mut PciInfo) -> c_int {
    let bus = 0x40 * device as usize as c_uint;
    unsafe {
        *out = std::mem::zeroed();
        (*out).bus = bus;
        write(&format!("00000000:{bus:02X}:00.0"), (*out).bus_id.as_mut_ptr(), 32)
    }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetMigMode(
    device: *mut c_void,
    current: *mut c_uint,
    pending: *mut c_uint,
) -> c_int {
    let Some(mode) = figure(device, 2) else {
        return NOT_SUPPORTED;
    };
    unsafe {
        *current = mode as c_uint;
        *pending = mode as c_uint;
    }
    SUCCESS
}
