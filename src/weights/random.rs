//! Parameters that no checkpoint holds: drawn from a seed ([`RandomSource`]), or a candle `VarBuilder`'s ([`VarBuilderSource`]).

use candle_core::{DType, Device, Tensor, Var};

use super::param_source::{Init, ParamSource};

/// Fresh parameters from a seed. Each tensor depends on the seed and on its own name alone, so the order of building and
/// the other tensors do not matter. All of them are trainable.
pub struct RandomSource {
    seed: u64,
    dtype: DType,
    device: Device,
    frozen: bool,
}

impl RandomSource {
    /// Parameters of type `dtype` on `device`, drawn from `seed`.
    #[must_use]
    pub fn new(seed: u64, dtype: DType, device: &Device) -> Self {
        Self { seed, dtype, device: device.clone(), frozen: false }
    }

    /// The same numbers, none of them trainable.
    #[must_use]
    pub fn frozen(self) -> Self {
        Self { frozen: true, ..self }
    }
}

impl ParamSource for RandomSource {
    fn get(&self, name: &str, shape: &[usize], init: Init) -> std::result::Result<Tensor, String> {
        const LARGEST: usize = 1 << 31;
        let count = shape.iter().try_fold(1usize, |count, &size| count.checked_mul(size));
        let Some(count) = count.filter(|&count| count <= LARGEST) else {
            return Err(format!("{name}: shape {shape:?} is more than {LARGEST} numbers"));
        };
        let values = draw(init, crate::random::stream(self.seed, name), count);
        Tensor::from_vec(values, shape, &Device::Cpu)
            .and_then(|t| t.to_dtype(self.dtype)?.to_device(&self.device))
            .and_then(|t| if self.frozen { Ok(t) } else { Ok(Var::from_tensor(&t)?.into_inner()) })
            .map_err(|e| format!("{name}: {e}"))
    }
}

fn draw(init: Init, mut rng: impl rand::Rng, count: usize) -> Vec<f32> {
    let mut uniform = || rng.random::<f32>();
    match init {
        Init::Const(value) => vec![value; count],
        Init::Uniform { bound } => (0..count).map(|_| (2.0 * uniform() - 1.0) * bound).collect(),
        // Box–Muller; 1 - u keeps the logarithm finite.
        Init::Normal { std } => (0..count)
            .map(|_| std * (-2.0 * (1.0 - uniform()).ln()).sqrt() * (std::f32::consts::TAU * uniform()).cos())
            .collect(),
    }
}

/// A candle `VarBuilder` as a source: what it hands out (a `Var` of a `VarMap`, or a plain tensor) is used as it is.
pub struct VarBuilderSource(pub candle_nn::VarBuilder<'static>);

impl ParamSource for VarBuilderSource {
    fn get(&self, name: &str, shape: &[usize], init: Init) -> std::result::Result<Tensor, String> {
        let hint = match init {
            Init::Const(value) => candle_nn::Init::Const(f64::from(value)),
            Init::Normal { std } => candle_nn::Init::Randn { mean: 0.0, stdev: f64::from(std) },
            Init::Uniform { bound } => candle_nn::Init::Uniform { lo: -f64::from(bound), up: f64::from(bound) },
        };
        self.0.get_with_hints(shape, name, hint).map_err(|e| format!("{name}: {e}"))
    }
}
