//! The allocator of programs and benchmarks.

/// Training allocates and frees large blocks all the time; glibc gives them back to the kernel, which zeroes them again.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

unsafe extern "C" {
    /// mimalloc's `void mi_option_set(mi_option_t option, long value)`.
    fn mi_option_set(option: std::ffi::c_int, value: std::ffi::c_long);
}

/// `mi_option_purge_delay` of mimalloc.h, the same in versions 2 and 3.
const PURGE_DELAY: std::ffi::c_int = 15;

/// Tells the allocator to keep what is freed: mimalloc too gives it back after 10 ms, less than a training step takes. Whoever
/// sets `MIMALLOC_PURGE_DELAY` decides.
pub fn keep_freed_memory() {
    if std::env::var_os("MIMALLOC_PURGE_DELAY").is_none() {
        // SAFETY: the option exists, −1 is a value of it, and it may be set at any time.
        unsafe { mi_option_set(PURGE_DELAY, -1) };
    }
}
