//! [`CheckpointSource`]: a checkpoint as the source that layers are built from.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use candle_core::{DType, Device, Tensor, Var};

use super::checkpoint::Checkpoint;
use super::names::{Renames, View, nearest};
use super::param_source::{Adapter, Init, ParamSource};
use super::parameters::Parameters;
use super::quantized::dequantized;
use crate::ops::{PackedWeight, Packing, Weight};
use crate::{Error, Result};

/// Above this many tensors no similar name is looked for: it would take too long for a hint.
const MAX_NAMES_FOR_HINT: usize = 20_000;

/// A checkpoint's tensors by our names. Nothing is read before it is asked for, and what is never asked for is remembered.
///
/// Tensors are plain f32 tensors on the CPU unless [`dtype`](Self::dtype), [`device`](Self::device) or
/// [`trainable`](Self::trainable) say otherwise. Put it into an [`Arc`] to ask for [`unused`](Self::unused) after building:
/// the `Arc` is a [`ParamSource`] too.
pub struct CheckpointSource {
    checkpoint: Arc<Checkpoint>,
    known: Vec<Known>,
    /// Our name → the tensors of the file with that name, as indices of `known`; more than one is a problem.
    ours: BTreeMap<String, Vec<(usize, View)>>,
    dtype: DType,
    device: Device,
    trainable: Box<dyn Fn(&str) -> bool + Send + Sync>,
    header_only: bool,
}

struct Known {
    name: String,
    ignored: bool,
    /// Which of its parts were asked for, a bit each.
    asked: AtomicU64,
    all: u64,
}

/// Where and how a file holds one of our tensors: enough to write it back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Stored {
    /// The name in the file.
    pub(crate) name: String,
    /// The shape in the file.
    pub(crate) shape: Vec<usize>,
    /// Which part of it is ours.
    pub(crate) view: View,
}

impl CheckpointSource {
    /// The tensors of `checkpoint` under the names that `renames` gives them.
    #[must_use]
    pub fn new(checkpoint: impl Into<Arc<Checkpoint>>, renames: &Renames) -> Self {
        let checkpoint = checkpoint.into();
        let (mut known, mut ours) = (Vec::<Known>::new(), BTreeMap::<_, Vec<(usize, View)>>::new());
        // The scales of quantised weights are read with them.
        for name in checkpoint.names().filter(|name| !checkpoint.is_scales(name)) {
            let views = renames.views(name);
            if views.is_empty() {
                continue;
            }
            let (ignored, all) = (renames.is_ignored(name), (1 << views.len()) - 1);
            for (our_name, view) in views {
                ours.entry(our_name).or_default().push((known.len(), view));
            }
            known.push(Known { name: name.to_string(), ignored, asked: AtomicU64::new(0), all });
        }
        // A known extra never competes with a tensor proper.
        for same in ours.values_mut() {
            if same.iter().any(|&(i, _)| !known[i].ignored) {
                same.retain(|&(i, _)| !known[i].ignored);
            }
        }
        Self {
            checkpoint,
            known,
            ours,
            dtype: DType::F32,
            device: Device::Cpu,
            trainable: Box::new(|_| false),
            header_only: false,
        }
    }

    /// Converts every tensor to `dtype`.
    #[must_use]
    pub fn dtype(mut self, dtype: DType) -> Self {
        self.dtype = dtype;
        self
    }

    /// Puts every tensor on `device`.
    #[must_use]
    pub fn device(mut self, device: &Device) -> Self {
        self.device = device.clone();
        self
    }

    /// Makes the tensors whose name (ours) `trainable` says yes to variables, made directly from the bytes of the file.
    #[must_use]
    pub fn trainable(mut self, trainable: impl Fn(&str) -> bool + Send + Sync + 'static) -> Self {
        self.trainable = Box::new(trainable);
        self
    }

    /// Checks names and shapes and reads no weight: every tensor is zeros that take no memory.
    #[must_use]
    pub fn header_only(mut self) -> Self {
        self.header_only = true;
        self
    }

    /// The checkpoint underneath.
    #[must_use]
    pub fn checkpoint(&self) -> &Checkpoint {
        &self.checkpoint
    }

    /// Our names of all tensors, sorted.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.ours.keys().map(String::as_str)
    }

    /// The shape of the tensor that we call `name`, or `None` if there is none: for what no configuration says.
    #[must_use]
    pub fn shape(&self, name: &str) -> Option<Vec<usize>> {
        let &(i, view) = self.ours.get(name)?.first()?;
        view.shape(self.checkpoint.info(&self.known[i].name)?.shape)
    }

    /// Where and how the file holds the tensor that we call `name`.
    pub(crate) fn stored(&self, name: &str) -> Option<Stored> {
        let &(i, view) = self.ours.get(name)?.first()?;
        // The file's own spelling, and not the one that the checkpoint made of it.
        let info = self.checkpoint.info(&self.known[i].name)?;
        Some(Stored { shape: info.shape.to_vec(), name: info.file_name.to_string(), view })
    }

    /// The checkpoint's name of the tensor that we call `name`, or `None` if there is none.
    #[must_use]
    pub fn file_name(&self, name: &str) -> Option<&str> {
        self.ours.get(name)?.first().map(|&(i, _)| self.known[i].name.as_str())
    }

    /// The tensors, in the checkpoint's spelling, that were never asked for and are no known extras. After building a model
    /// any of them means that the configuration describes another model than the weights.
    #[must_use]
    pub fn unused(&self) -> Vec<String> {
        let unused =
            self.known.iter().filter(|known| !known.ignored && known.asked.load(Ordering::Relaxed) != known.all);
        unused.map(|known| known.name.clone()).collect()
    }

    /// The tensors, in the checkpoint's spelling, that were asked for.
    pub(crate) fn asked(&self) -> Vec<String> {
        let asked = self.known.iter().filter(|known| known.asked.load(Ordering::Relaxed) != 0);
        asked.map(|known| known.name.clone()).collect()
    }

    /// The tensors, in the checkpoint's spelling, that were never asked for and are known extras.
    #[must_use]
    pub fn extras(&self) -> Vec<String> {
        let extras = self.known.iter().filter(|known| known.ignored && known.asked.load(Ordering::Relaxed) == 0);
        extras.map(|known| known.name.clone()).collect()
    }

    fn find(&self, name: &str) -> std::result::Result<(&str, View), String> {
        let Some(same) = self.ours.get(name) else { return Err(self.missing(name)) };
        for &(i, view) in same {
            let part = if let View::Part { index, .. } = view { 1 << index } else { 1 };
            self.known[i].asked.fetch_or(part, Ordering::Relaxed);
        }
        if let [(only, view)] = same[..] {
            return Ok((&self.known[only].name, view));
        }
        let spellings: Vec<String> = same.iter().map(|&(i, _)| format!("'{}'", self.known[i].name)).collect();
        Err(format!(
            "{name}: {} of {} are all this tensor",
            spellings.join(" and "),
            self.checkpoint.source().display()
        ))
    }

    fn missing(&self, name: &str) -> String {
        let hint = (self.ours.len() <= MAX_NAMES_FOR_HINT).then(|| nearest(name, self.names())).flatten();
        let hint = hint.map_or(String::new(), |near| match self.file_name(near) {
            Some(spelled) if spelled != near => {
                format!("; nearest name in the file: '{near}' (spelled '{spelled}' there)")
            }
            _ => format!("; nearest name in the file: '{near}'"),
        });
        format!("{name}: missing{hint}")
    }

    fn load(&self, name: &str, file_name: &str, view: View, shape: &[usize]) -> Result<Tensor> {
        if self.header_only {
            return Ok(Tensor::zeros((), self.dtype, &Device::Cpu)?.broadcast_as(shape)?);
        }
        self.tensor(file_name, view, shape, Kept { trainable: (self.trainable)(name), halves: false })
    }

    /// The tensor `name` for real, whatever [`header_only`](Self::header_only) says: a matrix that rows are multiplied with is
    /// packed as it is read, piece by piece, where `packing` says so.
    pub(crate) fn read(&self, name: &str, shape: &[usize], matrix: bool, packing: Packing) -> Result<Weight> {
        let (file_name, view) = self.find(name).map_err(|problem| Error::file(self.checkpoint.source(), problem))?;
        let packs = matrix && packing != Packing::None;
        if packs && view != View::Transposed {
            let packed = if self.checkpoint.is_quantized(file_name) && packing == Packing::Int8 {
                let (integers, scales) = self.checkpoint.integers(file_name)?;
                PackedWeight::from_integers(shape, &integers, scales)
            } else if let Some(floats) = self.checkpoint.floats(file_name, view.part())? {
                let inputs: usize = shape.iter().skip(1).product();
                PackedWeight::read(shape, packing, &|first, rows| floats.read(first * inputs, rows))?
            } else {
                None
            };
            if let Some(packed) = packed {
                return Ok(Weight::Packed(packed));
            }
        }
        // Tables beside integers: as many bits as they have on the disk then.
        let halves = packing == Packing::Int8 && !matrix && shape.len() > 1;
        let tensor = self.tensor(file_name, view, shape, Kept { trainable: (self.trainable)(name), halves })?;
        let packed = if packs { PackedWeight::pack(&tensor, packing)? } else { None };
        Ok(packed.map_or(Weight::Plain(tensor), Weight::Packed))
    }

    fn tensor(&self, file_name: &str, view: View, shape: &[usize], kept: Kept) -> Result<Tensor> {
        let Kept { trainable, halves } = kept;
        let mut values = match self.checkpoint.is_quantized(file_name) {
            true => dequantized(self.checkpoint.integers(file_name)?),
            false => self.checkpoint.values(file_name, view.part(), self.dtype)?,
        };
        if halves {
            values.round_to_half();
        }
        if view != View::Transposed {
            return Ok(if trainable {
                values.into_var(shape, self.dtype, &self.device)?.into_inner()
            } else {
                values.into_tensor(shape, self.dtype, &self.device)?
            });
        }
        let turned: Vec<usize> = shape.iter().rev().copied().collect();
        let tensor = values.into_tensor(&turned, self.dtype, &self.device)?.t()?.contiguous()?;
        Ok(if trainable { Var::from_tensor(&tensor)?.into_inner() } else { tensor })
    }
}

impl ParamSource for CheckpointSource {
    /// Shapes may differ by axes of length 1: position embeddings are (1,P,E) in one layout and (P,E) in another.
    fn get(&self, name: &str, shape: &[usize], _init: Init) -> std::result::Result<Tensor, String> {
        let (file_name, view) = self.find(name)?;
        let found = self.checkpoint.info(file_name).map(|info| info.shape).unwrap_or_default();
        let long_axes = |shape: &[usize]| shape.iter().copied().filter(|&n| n != 1).collect::<Vec<_>>();
        if view.shape(found).is_none_or(|found| long_axes(&found) != long_axes(shape)) {
            let file = self.checkpoint.file_of(file_name).unwrap_or_else(|| self.checkpoint.source()).display();
            let spelled =
                if file_name == name { String::new() } else { format!(", where it is spelled '{file_name}'") };
            let part = match view {
                View::Whole => String::new(),
                View::Transposed => " (transposed)".to_string(),
                View::Part { index, count } => format!(" (part {} of {count})", index + 1),
            };
            return Err(format!(
                "{name}: expected shape {shape:?} from the configuration, found {found:?}{part} in {file}{spelled}"
            ));
        }
        if self.checkpoint.is_quantized(file_name) {
            if let Some(problem) = self.checkpoint.scales_problem(file_name) {
                return Err(format!("{name}: {problem}"));
            }
            if view != View::Whole {
                return Err(format!(
                    "{name}: is of 8-bit integers, which are read only where the file holds it as it is"
                ));
            }
        }
        self.load(name, file_name, view, shape).map_err(|e| format!("{name}: {e}"))
    }
}

/// The parameters as a file is to hold them: under `stored`'s names, put together and turned round again, converted to `dtype`;
/// those that `stored` does not name as they are.
///
/// # Errors
/// If parts of one tensor are missing, or candle fails.
pub(crate) fn as_stored(
    parameters: &Parameters,
    stored: &BTreeMap<String, Stored>,
    dtype: DType,
) -> Result<Vec<(String, Tensor)>> {
    let mut whole: BTreeMap<&str, Tensor> = BTreeMap::new();
    let mut parts: BTreeMap<&str, BTreeMap<usize, Tensor>> = BTreeMap::new();
    for (name, tensor) in parameters.iter() {
        let tensor = tensor.detach().to_dtype(dtype)?;
        match stored.get(name) {
            None => drop(whole.insert(name, tensor)),
            Some(Stored { name, shape, view: View::Whole }) => {
                drop(whole.insert(name, tensor.reshape(shape.as_slice())?))
            }
            Some(Stored { name, shape, view: View::Transposed }) => {
                drop(whole.insert(name, tensor.t()?.contiguous()?.reshape(shape.as_slice())?));
            }
            Some(Stored { name, shape, view: View::Part { index, count } }) => {
                let mut part = shape.clone();
                part[0] /= count;
                let same = parts.entry(name).or_default();
                same.insert(*index, tensor.reshape(part)?);
                if same.len() == *count {
                    let all: Vec<&Tensor> = same.values().collect();
                    whole.insert(name, Tensor::cat(&all, 0)?);
                    parts.remove(name.as_str());
                }
            }
        }
    }
    match parts.keys().next() {
        Some(name) => Err(Error::argument("parameters", format!("parts of '{name}' are missing"))),
        None => Ok(whole.into_iter().map(|(name, tensor)| (name.to_string(), tensor)).collect()),
    }
}

/// What becomes of a tensor that is read.
#[derive(Clone, Copy)]
struct Kept {
    /// It is a variable.
    trainable: bool,
    /// Its numbers are rounded to f16.
    halves: bool,
}

impl View {
    /// Which part of how many it is.
    fn part(self) -> Option<(usize, usize)> {
        match self {
            Self::Part { index, count } => Some((index, count)),
            Self::Whole | Self::Transposed => None,
        }
    }

    /// The shape of what is seen of a tensor of shape `stored`; `None` where it cannot be seen so.
    fn shape(self, stored: &[usize]) -> Option<Vec<usize>> {
        let mut shape = stored.to_vec();
        match self {
            Self::Whole => {}
            Self::Transposed if shape.len() == 2 => shape.reverse(),
            Self::Part { count, .. } if shape.first().is_some_and(|rows| rows.is_multiple_of(count)) => {
                shape[0] /= count;
            }
            Self::Transposed | Self::Part { .. } => return None,
        }
        Some(shape)
    }
}

/// A shared source: the other owner can ask it afterwards what was never used.
impl<S: ParamSource + ?Sized> ParamSource for Arc<S> {
    fn get(&self, name: &str, shape: &[usize], init: Init) -> std::result::Result<Tensor, String> {
        (**self).get(name, shape, init)
    }

    fn packed(&self, name: &str, shape: &[usize]) -> Option<PackedWeight> {
        (**self).packed(name, shape)
    }

    fn adapter(&self, module: &str) -> Option<Adapter> {
        (**self).adapter(module)
    }

    fn activations(&self) -> super::Activations {
        (**self).activations()
    }
}
