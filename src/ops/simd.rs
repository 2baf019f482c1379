//! Loops compiled for several instruction sets, and the elementary functions in them.
//!
//! [`vectorised!`] compiles a function twice, for the baseline and for AVX2 with FMA, and picks one at run time.
//! The bodies are plain loops over slices which the compiler turns into vector instructions; what keeps it from doing so
//! (calls into the C library, sums in strict order) is avoided by [`exp`], [`sum`] and their relatives.

/// Compiles a function for each instruction set and chooses when it is called. The body sees a constant that says whether
/// fused multiply-add is cheap.
macro_rules! vectorised {
    ($(#[$meta:meta])* $vis:vis fn $name:ident<const $fma:ident: bool>($($arg:ident: $ty:ty),* $(,)?) $(-> $ret:ty)? $body:block) => {
        $(#[$meta])*
        $vis fn $name($($arg: $ty),*) $(-> $ret)? {
            #[inline(always)]
            fn body<const $fma: bool>($($arg: $ty),*) $(-> $ret)? $body

            #[cfg(target_arch = "x86_64")]
            {
                #[target_feature(enable = "avx2,fma")]
                fn avx2($($arg: $ty),*) $(-> $ret)? {
                    body::<true>($($arg),*)
                }
                if std::arch::is_x86_feature_detected!("avx2") && std::arch::is_x86_feature_detected!("fma") {
                    #[allow(unsafe_code)]
                    // SAFETY: the processor has just said that it has both features.
                    return unsafe { avx2($($arg),*) };
                }
            }
            body::<{ cfg!(target_arch = "aarch64") }>($($arg),*)
        }
    };
}
pub(crate) use vectorised;

/// Independent partial sums of a reduction: four vectors of eight hide the latency of an addition.
const LANES: usize = 32;

/// `a·b + c`, in one rounding where the processor does that fast.
#[inline(always)]
pub(super) fn mul_add<const FMA: bool>(a: f32, b: f32, c: f32) -> f32 {
    if FMA { a.mul_add(b, c) } else { a * b + c }
}

/// Horner's rule, highest coefficient first.
#[inline(always)]
pub(super) fn polynomial<const FMA: bool, const N: usize>(x: f32, coefficients: [f32; N]) -> f32 {
    let mut value = coefficients[0];
    for &coefficient in &coefficients[1..] {
        value = mul_add::<FMA>(value, x, coefficient);
    }
    value
}

/// e^x to about one unit in the last place; the argument is clamped to [-87, 88], where the result is a normal number.
/// NaN stays NaN.
///
/// Range reduction by ln 2 in two parts and the polynomial of the Cephes library (`expf.c`).
#[inline(always)]
pub(super) fn exp<const FMA: bool>(x: f32) -> f32 {
    // Adding 1.5·2²³ leaves the rounded integer in the low bits of the mantissa.
    const ROUND: f32 = 12_582_912.0;
    let x = if x > 88.0 { 88.0 } else { x };
    let x = if x < -87.0 { -87.0 } else { x };
    let shifted = mul_add::<FMA>(x, std::f32::consts::LOG2_E, ROUND);
    let n = shifted - ROUND;
    let r = mul_add::<FMA>(n, -0.693_359_4, x);
    let r = mul_add::<FMA>(n, 2.121_944_4e-4, r);
    let tail = polynomial::<FMA, 6>(r, [1.987_569_1e-4, 1.398_2e-3, 8.333_452e-3, 4.166_579_6e-2, 1.666_666_5e-1, 0.5]);
    let value = mul_add::<FMA>(tail, r * r, r) + 1.0;
    f32::from_bits(value.to_bits().wrapping_add(shifted.to_bits() << 23))
}

/// 1 / (1 + e^-x).
#[inline(always)]
pub(super) fn sigmoid<const FMA: bool>(x: f32) -> f32 {
    1.0 / (1.0 + exp::<FMA>(-x))
}

/// Σ f(xᵢ).
#[inline(always)]
pub(super) fn sum(x: &[f32], f: impl Fn(f32) -> f32) -> f32 {
    let mut lanes = [0.0f32; LANES];
    let (chunks, rest) = x.as_chunks::<LANES>();
    for chunk in chunks {
        for (lane, &v) in lanes.iter_mut().zip(chunk) {
            *lane += f(v);
        }
    }
    for (lane, &v) in lanes.iter_mut().zip(rest) {
        *lane += f(v);
    }
    fold(lanes, |a, b| a + b)
}

/// Σ f(xᵢ, yᵢ) over two slices of one length.
#[inline(always)]
pub(super) fn sum2(x: &[f32], y: &[f32], f: impl Fn(f32, f32) -> f32) -> f32 {
    let mut lanes = [0.0f32; LANES];
    let (x, x_rest) = x.as_chunks::<LANES>();
    let (y, y_rest) = y.as_chunks::<LANES>();
    for (x, y) in x.iter().zip(y) {
        for i in 0..LANES {
            lanes[i] += f(x[i], y[i]);
        }
    }
    for (lane, (&x, &y)) in lanes.iter_mut().zip(x_rest.iter().zip(y_rest)) {
        *lane += f(x, y);
    }
    fold(lanes, |a, b| a + b)
}

/// The largest value; -∞ of an empty slice. A NaN is passed over.
#[inline(always)]
pub(super) fn maximum(x: &[f32]) -> f32 {
    let larger = |a: f32, b: f32| if b > a { b } else { a };
    let mut lanes = [f32::NEG_INFINITY; LANES];
    let (chunks, rest) = x.as_chunks::<LANES>();
    for chunk in chunks {
        for (lane, &v) in lanes.iter_mut().zip(chunk) {
            *lane = larger(*lane, v);
        }
    }
    for (lane, &v) in lanes.iter_mut().zip(rest) {
        *lane = larger(*lane, v);
    }
    fold(lanes, larger)
}

/// Combines the lanes pairwise: halves onto halves.
#[inline(always)]
fn fold(mut lanes: [f32; LANES], f: impl Fn(f32, f32) -> f32) -> f32 {
    let mut width = LANES / 2;
    while width > 0 {
        for i in 0..width {
            lanes[i] = f(lanes[i], lanes[i + width]);
        }
        width /= 2;
    }
    lanes[0]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exp_is_within_two_units_in_the_last_place_of_the_exact_value() {
        for i in -8700..=8800 {
            let x = i as f32 / 100.0;
            let exact = f64::from(x).exp();
            for got in [exp::<true>(x), exp::<false>(x)] {
                let error = (f64::from(got) - exact).abs() / exact;
                assert!(error < 2.4e-7, "exp({x}) = {got}, exact {exact}, relative error {error:e}");
            }
        }
    }

    #[test]
    fn exp_saturates_and_keeps_nan() {
        assert!(exp::<true>(f32::NAN).is_nan());
        assert!(exp::<true>(f32::INFINITY) > 1e38);
        assert!(exp::<true>(f32::NEG_INFINITY) < 2e-38);
    }

    #[test]
    fn reductions_agree_with_serial_ones_for_every_remainder() {
        for n in 0..100usize {
            let x: Vec<f32> = (0..n).map(|i| ((i * 37 + 11) % 101) as f32 - 50.0).collect();
            assert_eq!(sum(&x, |v| v), x.iter().sum::<f32>());
            assert_eq!(sum2(&x, &x, |a, b| a * b), x.iter().map(|v| v * v).sum::<f32>());
            assert_eq!(maximum(&x), x.iter().copied().fold(f32::NEG_INFINITY, f32::max));
        }
    }
}
