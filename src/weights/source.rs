//! [`CheckpointSource`]: a checkpoint as the source that layers are built from.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use candle_core::{DType, Device, Tensor};

use super::checkpoint::Checkpoint;
use super::names::{Renames, nearest};
use super::params::{Init, ParamSource};
use crate::Result;

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
    ours: BTreeMap<String, Vec<usize>>,
    dtype: DType,
    device: Device,
    trainable: Box<dyn Fn(&str) -> bool + Send + Sync>,
}

struct Known {
    name: String,
    ignored: bool,
    asked: AtomicBool,
}

impl CheckpointSource {
    /// The tensors of `checkpoint` under the names that `renames` gives them.
    #[must_use]
    pub fn new(checkpoint: impl Into<Arc<Checkpoint>>, renames: &Renames) -> Self {
        let checkpoint = checkpoint.into();
        let (mut known, mut ours) = (Vec::new(), BTreeMap::<_, Vec<usize>>::new());
        for name in checkpoint.names() {
            let Some(our_name) = renames.map(name) else { continue };
            ours.entry(our_name).or_default().push(known.len());
            let ignored = renames.is_ignored(name);
            known.push(Known { name: name.to_string(), ignored, asked: AtomicBool::new(false) });
        }
        // A known extra never competes with a tensor proper.
        for same in ours.values_mut() {
            if same.iter().any(|&i| !known[i].ignored) {
                same.retain(|&i| !known[i].ignored);
            }
        }
        Self { checkpoint, known, ours, dtype: DType::F32, device: Device::Cpu, trainable: Box::new(|_| false) }
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

    /// The checkpoint underneath.
    #[must_use]
    pub fn checkpoint(&self) -> &Checkpoint {
        &self.checkpoint
    }

    /// Our names of all tensors, sorted.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.ours.keys().map(String::as_str)
    }

    /// The shape in the file of the tensor that we call `name`, or `None` if there is none: for what no configuration says.
    #[must_use]
    pub fn shape(&self, name: &str) -> Option<&[usize]> {
        Some(self.checkpoint.info(self.file_name(name)?)?.shape)
    }

    /// The checkpoint's name of the tensor that we call `name`, or `None` if there is none.
    #[must_use]
    pub fn file_name(&self, name: &str) -> Option<&str> {
        self.ours.get(name)?.first().map(|&i| self.known[i].name.as_str())
    }

    /// The tensors, in the checkpoint's spelling, that were never asked for and are no known extras. After building a model
    /// any of them means that the configuration describes another model than the weights.
    #[must_use]
    pub fn unused(&self) -> Vec<String> {
        let unused = self.known.iter().filter(|known| !known.ignored && !known.asked.load(Ordering::Relaxed));
        unused.map(|known| known.name.clone()).collect()
    }

    fn find(&self, name: &str) -> std::result::Result<&str, String> {
        let Some(same) = self.ours.get(name) else { return Err(self.missing(name)) };
        for &i in same {
            self.known[i].asked.store(true, Ordering::Relaxed);
        }
        if let [only] = same[..] {
            return Ok(&self.known[only].name);
        }
        let spellings: Vec<String> = same.iter().map(|&i| format!("'{}'", self.known[i].name)).collect();
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

    fn load(&self, name: &str, file_name: &str, shape: &[usize]) -> Result<Tensor> {
        let values = self.checkpoint.values(file_name, self.dtype)?;
        Ok(if (self.trainable)(name) {
            values.into_var(shape, self.dtype, &self.device)?.into_inner()
        } else {
            values.into_tensor(shape, self.dtype, &self.device)?
        })
    }
}

impl ParamSource for CheckpointSource {
    /// Shapes may differ by axes of length 1: position embeddings are (1,P,E) in one layout and (P,E) in another.
    fn get(&self, name: &str, shape: &[usize], _init: Init) -> std::result::Result<Tensor, String> {
        let file_name = self.find(name)?;
        let found = self.checkpoint.info(file_name).map(|info| info.shape).unwrap_or_default();
        let long_axes = |shape: &[usize]| shape.iter().copied().filter(|&n| n != 1).collect::<Vec<_>>();
        if long_axes(found) != long_axes(shape) {
            let file = self.checkpoint.file_of(file_name).unwrap_or_else(|| self.checkpoint.source()).display();
            let spelled =
                if file_name == name { String::new() } else { format!(", where it is spelled '{file_name}'") };
            return Err(format!(
                "{name}: expected shape {shape:?} from the configuration, found {found:?} in {file}{spelled}"
            ));
        }
        self.load(name, file_name, shape).map_err(|e| format!("{name}: {e}"))
    }
}

/// A shared source: the other owner can ask it afterwards what was never used.
impl<S: ParamSource + ?Sized> ParamSource for Arc<S> {
    fn get(&self, name: &str, shape: &[usize], init: Init) -> std::result::Result<Tensor, String> {
        (**self).get(name, shape, init)
    }
}
