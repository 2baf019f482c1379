//! [`Unpickler`]: the part of Python's pickle language that a state dict needs, read without running anything.
//!
//! A pickle is a program for a stack machine. Of its instructions only those that make numbers, texts, tuples, lists and
//! dictionaries are known here, and of the functions it may call only the five of [`Callable`], which describe tensors;
//! anything else is an error that names it. (PyTorch's own restricted reader: `torch/_weights_only_unpickler.py`; the
//! instructions: `Lib/pickletools.py`.)
//!
//! Objects lie side by side in one list and name each other by their place in it, so that neither a value that is shared a
//! million times nor one nested a million deep costs more than its bytes, to build as to drop.

use std::collections::HashMap;
use std::io::{BufRead, Read};

use safetensors::Dtype;

/// The longest pickle, in bytes, and the most objects in it: a state dict of 2000 tensors has 300 kB and 60 000 objects.
const MAX_BYTES: u64 = 32 << 20;
const MAX_OBJECTS: usize = 1 << 19;
/// The longest text, in bytes: names of tensors are far shorter.
const MAX_TEXT: u64 = 1 << 16;
/// The most axes of a tensor.
const MAX_RANK: usize = 8;

pub(super) type Result<T> = std::result::Result<T, String>;

/// The place of an object in [`Objects`].
pub(super) type Id = u32;

/// A value that a pickle made.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Object {
    None,
    Bool(bool),
    Int(i64),
    /// A number too long for 64 bits, or with a point.
    OtherNumber,
    /// The magic number that a file of `torch.save` before PyTorch 1.6 begins with.
    LegacyMagic,
    Text(Box<str>),
    Tuple(Vec<Id>),
    List(Vec<Id>),
    Dict(Vec<(Id, Id)>),
    Callable(Callable),
    Storage(Storage),
    Tensor(TensorView),
}

/// What a pickle may name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Callable {
    OrderedDict,
    Tensor,
    Parameter,
    Size,
    StorageOf(Dtype),
}

/// The numbers that tensors share, kept elsewhere in the file.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Storage {
    pub(super) key: Box<str>,
    pub(super) dtype: Dtype,
    /// How many numbers there are.
    pub(super) len: i64,
}

/// Some numbers of a storage. Nothing about it was checked yet.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct TensorView {
    pub(super) storage: Id,
    pub(super) offset: i64,
    pub(super) shape: Vec<i64>,
    pub(super) strides: Vec<i64>,
}

/// All objects of one pickle.
#[derive(Default)]
pub(super) struct Objects(Vec<Object>);

impl Objects {
    pub(super) fn get(&self, id: Id) -> &Object {
        &self.0[id as usize]
    }

    pub(super) fn text(&self, id: Id) -> Option<&str> {
        match self.get(id) {
            Object::Text(text) => Some(text),
            _ => None,
        }
    }

    pub(super) fn storages(&self) -> impl Iterator<Item = &Storage> {
        self.0.iter().filter_map(|object| if let Object::Storage(storage) = object { Some(storage) } else { None })
    }

    fn integers(&self, id: Id) -> Option<Vec<i64>> {
        let Object::Tuple(items) = self.get(id) else { return None };
        if items.len() > MAX_RANK {
            return None;
        }
        items.iter().map(|&item| if let Object::Int(n) = self.get(item) { Some(*n) } else { None }).collect()
    }
}

/// What a call gives.
enum Made {
    New(Object),
    Same(Id),
}

/// Reads pickles one after the other.
pub(super) struct Unpickler<R> {
    reader: std::io::Take<R>,
    objects: Objects,
    stack: Vec<Id>,
    /// Where in the stack each open bracket is.
    marks: Vec<usize>,
    memo: HashMap<u32, Id>,
}

impl<R: BufRead> Unpickler<R> {
    pub(super) fn new(reader: R) -> Self {
        let reader = reader.take(MAX_BYTES);
        Self { reader, objects: Objects::default(), stack: Vec::new(), marks: Vec::new(), memo: HashMap::new() }
    }

    pub(super) fn objects(&self) -> &Objects {
        &self.objects
    }

    /// All objects, and how many bytes were read for them.
    pub(super) fn finish(self) -> (Objects, u64) {
        (self.objects, MAX_BYTES - self.reader.limit())
    }

    /// Reads one pickle up to its end; its value, which lies among [`Unpickler::objects`].
    pub(super) fn load(&mut self) -> Result<Id> {
        self.stack.clear();
        self.marks.clear();
        self.memo.clear();
        loop {
            let [instruction] = self.bytes()?;
            if instruction == b'.' {
                return self.pop();
            }
            self.step(instruction)?;
            if self.objects.0.len().max(self.stack.len()).max(self.memo.len()).max(self.marks.len()) > MAX_OBJECTS {
                return Err(format!("its pickle has more than {MAX_OBJECTS} objects, which no state dict has"));
            }
        }
    }

    fn step(&mut self, instruction: u8) -> Result<()> {
        match instruction {
            // The protocol's number and, from the fourth on, the lengths of frames: only hints for buffering.
            0x80 => self.bytes::<1>().map(drop)?,
            0x95 => self.bytes::<8>().map(drop)?,
            b'(' => self.marks.push(self.stack.len()),
            b'0' => self.pop().map(drop)?,
            b'N' => self.push(Object::None),
            0x88 => self.push(Object::Bool(true)),
            0x89 => self.push(Object::Bool(false)),
            b'K' => self.number(|[byte]: [u8; 1]| i64::from(byte))?,
            b'M' => self.number(|bytes| i64::from(u16::from_le_bytes(bytes)))?,
            b'J' => self.number(|bytes| i64::from(i32::from_le_bytes(bytes)))?,
            0x8a => self.long()?,
            b'G' => {
                self.bytes::<8>()?;
                self.push(Object::OtherNumber);
            }
            b'X' => self.length::<4>(u32::from_le_bytes).and_then(|length| self.text(length))?,
            b'T' => self.length::<4>(u32::from_le_bytes).and_then(|length| self.text(length))?,
            0x8c | b'U' => self.length::<1>(|[byte]| u32::from(byte)).and_then(|length| self.text(length))?,
            b')' => self.push(Object::Tuple(Vec::new())),
            b']' => self.push(Object::List(Vec::new())),
            b'}' => self.push(Object::Dict(Vec::new())),
            0x85..=0x87 => {
                let items = self.top(usize::from(instruction - 0x84))?;
                self.push(Object::Tuple(items));
            }
            b't' => {
                let items = self.marked()?;
                self.push(Object::Tuple(items));
            }
            b'l' => {
                let items = self.marked()?;
                self.push(Object::List(items));
            }
            b'a' => self.top(1).and_then(|items| self.append(&items))?,
            b'e' => self.marked().and_then(|items| self.append(&items))?,
            b's' => self.top(2).and_then(|items| self.set_items(&items))?,
            b'u' => self.marked().and_then(|items| self.set_items(&items))?,
            b'q' => self.length::<1>(|[byte]| u32::from(byte)).and_then(|key| self.remember(key))?,
            b'r' => self.length::<4>(u32::from_le_bytes).and_then(|key| self.remember(key))?,
            0x94 => self.remember(u32::try_from(self.memo.len()).unwrap_or(u32::MAX))?,
            b'h' => self.length::<1>(|[byte]| u32::from(byte)).and_then(|key| self.recall(key))?,
            b'j' => self.length::<4>(u32::from_le_bytes).and_then(|key| self.recall(key))?,
            b'c' => {
                let (module, name) = (self.line()?, self.line()?);
                self.global(&module, &name)?;
            }
            0x93 => {
                let names = self.top(2)?;
                let text =
                    |id| self.objects.text(id).map(str::to_string).ok_or("its pickle names a function by no text");
                let (module, name) = (text(names[0])?, text(names[1])?);
                self.global(&module, &name)?;
            }
            b'R' => self.call()?,
            b'b' => self.build()?,
            b'Q' => self.storage()?,
            other => return Err(format!("its pickle has the instruction {other:#04x}, which no state dict needs")),
        }
        Ok(())
    }

    fn push(&mut self, object: Object) {
        // There are never more objects than MAX_OBJECTS, by `load`.
        self.stack.push(u32::try_from(self.objects.0.len()).unwrap_or(u32::MAX));
        self.objects.0.push(object);
    }

    fn number<const WIDTH: usize>(&mut self, convert: impl Fn([u8; WIDTH]) -> i64) -> Result<()> {
        let number = convert(self.bytes()?);
        self.push(Object::Int(number));
        Ok(())
    }

    fn long(&mut self) -> Result<()> {
        const MAGIC: [u8; 10] = [0x6c, 0xfc, 0x9c, 0x46, 0xf9, 0x20, 0x6a, 0xa8, 0x50, 0x19];
        let length = self.length(|[byte]: [u8; 1]| u32::from(byte))?;
        let bytes = self.take(u64::from(length))?;
        let sign = if bytes.last().is_some_and(|byte| byte & 0x80 != 0) { 0xff } else { 0 };
        let mut number = [sign; 8];
        self.push(match number.get_mut(..bytes.len()) {
            Some(low) => {
                low.copy_from_slice(&bytes);
                Object::Int(i64::from_le_bytes(number))
            }
            None if bytes == MAGIC => Object::LegacyMagic,
            None => Object::OtherNumber,
        });
        Ok(())
    }

    fn text(&mut self, length: u32) -> Result<()> {
        if u64::from(length) > MAX_TEXT {
            return Err(format!("its pickle has a text of {length} bytes, which no state dict has"));
        }
        let bytes = self.take(u64::from(length))?;
        let text = String::from_utf8(bytes).map_err(|_| "its pickle has a text that is not UTF-8")?;
        self.push(Object::Text(text.into()));
        Ok(())
    }

    fn append(&mut self, items: &[Id]) -> Result<()> {
        match self.last()? {
            Object::List(list) => list.extend(items),
            _ => return Err("its pickle appends to what is no list".into()),
        }
        Ok(())
    }

    fn set_items(&mut self, items: &[Id]) -> Result<()> {
        let (pairs, []) = items.as_chunks::<2>() else { return Err("its pickle has a key without a value".into()) };
        match self.last()? {
            Object::Dict(dict) => dict.extend(pairs.iter().map(|[key, value]| (*key, *value))),
            _ => return Err("its pickle sets items of what is no dict".into()),
        }
        Ok(())
    }

    fn remember(&mut self, key: u32) -> Result<()> {
        let id = *self.stack.last().ok_or_else(empty)?;
        self.memo.insert(key, id);
        Ok(())
    }

    fn recall(&mut self, key: u32) -> Result<()> {
        let id = self.memo.get(&key).ok_or("its pickle asks for an object that it never stored")?;
        self.stack.push(*id);
        Ok(())
    }

    fn global(&mut self, module: &str, name: &str) -> Result<()> {
        let callable = match (module, name) {
            ("collections", "OrderedDict") => Callable::OrderedDict,
            ("torch._utils", "_rebuild_tensor_v2" | "_rebuild_tensor") => Callable::Tensor,
            ("torch._utils", "_rebuild_parameter") => Callable::Parameter,
            ("torch", "Size") => Callable::Size,
            ("torch", "FloatStorage") => Callable::StorageOf(Dtype::F32),
            ("torch", "HalfStorage") => Callable::StorageOf(Dtype::F16),
            ("torch", "BFloat16Storage") => Callable::StorageOf(Dtype::BF16),
            ("torch", "DoubleStorage") => Callable::StorageOf(Dtype::F64),
            ("torch", "LongStorage") => Callable::StorageOf(Dtype::I64),
            ("torch", "IntStorage") => Callable::StorageOf(Dtype::I32),
            ("torch", "ShortStorage") => Callable::StorageOf(Dtype::I16),
            ("torch", "CharStorage") => Callable::StorageOf(Dtype::I8),
            ("torch", "ByteStorage") => Callable::StorageOf(Dtype::U8),
            ("torch", "BoolStorage") => Callable::StorageOf(Dtype::BOOL),
            _ => {
                return Err(format!(
                    "its pickle wants '{}.{}', which is none of the few things that a state dict needs; nothing was run. Load it \
                     in Python if you trust it, and save its state dict alone, best as safetensors",
                    module.escape_debug(),
                    name.escape_debug()
                ));
            }
        };
        self.push(Object::Callable(callable));
        Ok(())
    }

    fn call(&mut self) -> Result<()> {
        let called = self.top(2)?;
        let (Object::Callable(callable), Object::Tuple(arguments)) =
            (self.objects.get(called[0]), self.objects.get(called[1]))
        else {
            return Err("its pickle calls what is no function".into());
        };
        // What is there already is named again and never copied: it may be large and called for often.
        let kind = *callable;
        let result = match (callable, &arguments[..]) {
            (Callable::OrderedDict, []) => Some(Made::New(Object::Dict(Vec::new()))),
            (Callable::Size, [sizes]) => self.objects.integers(*sizes).map(|_| Made::Same(*sizes)),
            (Callable::Tensor, [storage, offset, shape, strides, ..]) => {
                self.view(*storage, *offset, *shape, *strides).map(Made::New)
            }
            (Callable::Parameter, [tensor, ..]) if matches!(self.objects.get(*tensor), Object::Tensor(_)) => {
                Some(Made::Same(*tensor))
            }
            _ => None,
        };
        match result {
            Some(Made::New(object)) => self.push(object),
            Some(Made::Same(id)) => self.stack.push(id),
            None => return Err(format!("its pickle calls {kind:?} with arguments of other kinds")),
        }
        Ok(())
    }

    fn view(&self, storage: Id, offset: Id, shape: Id, strides: Id) -> Option<Object> {
        let (Object::Storage(_), Object::Int(offset)) = (self.objects.get(storage), self.objects.get(offset)) else {
            return None;
        };
        let (shape, strides) = (self.objects.integers(shape)?, self.objects.integers(strides)?);
        (shape.len() == strides.len()).then_some(Object::Tensor(TensorView {
            storage,
            offset: *offset,
            shape,
            strides,
        }))
    }

    /// The attributes of a dict (a state dict's `_metadata`) and nothing else; they do not matter here.
    fn build(&mut self) -> Result<()> {
        self.pop()?;
        match self.last()? {
            Object::Dict(_) => Ok(()),
            _ => Err("its pickle sets attributes of what is no dict".into()),
        }
    }

    /// `("storage", type, key, device, length)`, and before PyTorch 1.6 one more: a view of another storage, or None.
    fn storage(&mut self) -> Result<()> {
        let id = self.pop()?;
        let refuse = || "its pickle refers to something outside of it that is no storage of numbers".to_string();
        let Object::Tuple(parts) = self.objects.get(id) else { return Err(refuse()) };
        let [kind, class, key, _device, length, view @ ..] = &parts[..] else { return Err(refuse()) };
        if !view.iter().all(|&id| *self.objects.get(id) == Object::None) {
            return Err("it shares storages in a way that only very old versions of PyTorch did".into());
        }
        let parts =
            (self.objects.text(*kind), self.objects.get(*class), self.objects.text(*key), self.objects.get(*length));
        let (Some("storage"), Object::Callable(Callable::StorageOf(dtype)), Some(key), Object::Int(len)) = parts else {
            return Err(refuse());
        };
        let storage = Storage { key: key.into(), dtype: *dtype, len: *len };
        self.push(Object::Storage(storage));
        Ok(())
    }

    fn last(&mut self) -> Result<&mut Object> {
        let id = *self.stack.last().ok_or_else(empty)?;
        Ok(&mut self.objects.0[id as usize])
    }

    fn pop(&mut self) -> Result<Id> {
        self.top(1).map(|items| items[0])
    }

    /// Takes the last `count` objects off the stack, but none before the last open bracket.
    fn top(&mut self, count: usize) -> Result<Vec<Id>> {
        let bottom = self.marks.last().copied().unwrap_or(0);
        let start = self.stack.len().checked_sub(count).filter(|&start| start >= bottom).ok_or_else(empty)?;
        Ok(self.stack.split_off(start))
    }

    fn marked(&mut self) -> Result<Vec<Id>> {
        let mark = self.marks.pop().ok_or("its pickle closes a bracket that it never opened")?;
        Ok(self.stack.split_off(mark))
    }

    fn bytes<const WIDTH: usize>(&mut self) -> Result<[u8; WIDTH]> {
        let mut bytes = [0; WIDTH];
        self.reader.read_exact(&mut bytes).map_err(|e| self.truncated(&e))?;
        Ok(bytes)
    }

    fn length<const WIDTH: usize>(&mut self, convert: impl Fn([u8; WIDTH]) -> u32) -> Result<u32> {
        self.bytes().map(convert)
    }

    fn take(&mut self, length: u64) -> Result<Vec<u8>> {
        let mut bytes = Vec::new();
        let read = Read::by_ref(&mut self.reader).take(length).read_to_end(&mut bytes);
        match read {
            Ok(count) if count as u64 == length => Ok(bytes),
            Ok(_) => Err(self.truncated(&std::io::ErrorKind::UnexpectedEof.into())),
            Err(e) => Err(self.truncated(&e)),
        }
    }

    fn line(&mut self) -> Result<String> {
        let mut line = Vec::new();
        let read = Read::by_ref(&mut self.reader).take(MAX_TEXT).read_until(b'\n', &mut line);
        read.map_err(|e| self.truncated(&e))?;
        if line.pop() != Some(b'\n') {
            return Err("its pickle ends in the middle of a name".into());
        }
        Ok(String::from_utf8_lossy(&line).into_owned())
    }

    fn truncated(&self, error: &std::io::Error) -> String {
        match (error.kind(), self.reader.limit()) {
            (std::io::ErrorKind::UnexpectedEof, 0) => format!("its pickle is longer than {MAX_BYTES} bytes"),
            (std::io::ErrorKind::UnexpectedEof, _) => "its pickle is truncated".into(),
            _ => format!("cannot be read: {error}"),
        }
    }
}

fn empty() -> String {
    "its pickle takes an object off an empty stack".into()
}
