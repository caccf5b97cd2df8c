//! The frozen prefix: what the blocks below the lowest trained one make of a document, computed once.
//!
//! Where only upper layers are adapted (`layers_to_transform`), everything below is the same in every epoch. A
//! [`Prefix`] keeps, for each document it has seen, the input of the lowest trained block, `[tokens, hidden]` in
//! f32 as the blocks pass it on, in memory or in a file, up to a number of bytes. A document that is there already is
//! read back, the others of a batch are computed together.
//!
//! What a document becomes does not depend on its neighbours: they cannot see each other, and products of more than
//! [`FEW_ROWS`] rows add up in the same order whatever their height. A batch of no more is therefore computed as a
//! whole and not kept, and new documents of so few tokens are computed together with known ones of their batch. So
//! the numbers are the same bits as without, on a processor; a GPU's library may choose another order for another
//! height.
//!
//! The file is one without a name, in a folder the user gives: it is gone with the process, however that ends, so
//! that nothing of the documents stays behind. The operating system holds of it in memory what nobody else needs.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use candle_core::{Device, Tensor};
use sparsam_kernels::gemm::FEW_ROWS;
use sparsam_kernels::{Documents, host};

use crate::error::Result;

/// A [`Prefix`] as a model's hook hands it out.
#[derive(Clone)]
pub struct SharedPrefix(Arc<Mutex<Prefix>>);

impl SharedPrefix {
    /// Shares a prefix.
    pub fn new(prefix: Prefix) -> Self {
        Self(Arc::new(Mutex::new(prefix)))
    }

    /// The prefix, for one pass.
    pub fn lock(&self) -> MutexGuard<'_, Prefix> {
        // Whoever panicked left documents that are kept whole or not at all.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The lowest trained block and what it reads; see [`Prefix::input`]. `compute` is told the block too.
    ///
    /// # Errors
    /// As [`Prefix::input`].
    pub(crate) fn input(
        &self,
        ids: &[u32],
        documents: &Documents,
        device: &Device,
        compute: impl FnOnce(usize, &[u32], &Documents) -> Result<Tensor>,
    ) -> Result<(usize, Tensor)> {
        let mut prefix = self.lock();
        let lowest = prefix.lowest;
        let below = |ids: &[u32], documents: &Documents| compute(lowest, ids, documents);
        Ok((lowest, prefix.input(ids, documents, device, below)?))
    }
}

/// Bytes of a number.
const NUMBER: usize = size_of::<f32>();

/// Where what is kept lies.
pub enum Store {
    /// In the process's memory.
    Memory,
    /// In a file, which is written from its beginning.
    File(File),
}

/// What is kept of one document.
enum Kept {
    Here(Box<[f32]>),
    /// Its first byte in the file.
    At(u64),
}

/// What was read back and what was not, in tokens.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Computed, once or because there was no room.
    pub computed: u64,
    /// Read back.
    pub reused: u64,
    /// Documents that are kept.
    pub documents: u64,
    /// Bytes they take.
    pub bytes: u64,
}

/// The inputs of the lowest trained block, of documents seen before.
pub struct Prefix {
    lowest: usize,
    width: usize,
    store: Store,
    budget: u64,
    known: HashMap<Box<[u32]>, Kept>,
    counts: Counts,
    full: Option<String>,
}

impl Prefix {
    /// Keeps inputs of block `lowest`, `width` numbers a token, in `store`, at most `budget` bytes of them.
    pub fn new(lowest: usize, width: usize, store: Store, budget: u64) -> Self {
        Self {
            lowest,
            width,
            store,
            budget,
            known: HashMap::new(),
            counts: Counts::default(),
            full: None,
        }
    }

    /// The block whose inputs these are: the first one that is not computed in advance.
    pub fn lowest(&self) -> usize {
        self.lowest
    }

    /// What was read back so far.
    pub fn counts(&self) -> Counts {
        self.counts
    }

    /// Why nothing more is kept, if that is so: the bytes are used up, or the file cannot be written.
    pub fn full(&self) -> Option<&str> {
        self.full.as_deref()
    }

    /// Inputs of the lowest trained block for documents whose tokens are `ids`, `[tokens, hidden]` on `device`;
    /// `compute` makes them of those that are not kept yet.
    ///
    /// # Errors
    /// Those of `compute`, or what was kept cannot be read.
    pub fn input(
        &mut self,
        ids: &[u32],
        documents: &Documents,
        device: &Device,
        compute: impl FnOnce(&[u32], &Documents) -> Result<Tensor>,
    ) -> Result<Tensor> {
        if ids.len() <= FEW_ROWS {
            self.counts.computed += ids.len() as u64;
            return compute(ids, documents);
        }
        let texts: Vec<&[u32]> = documents.ranges().map(|range| &ids[range]).collect();
        // One that comes twice in its first batch is new twice, and kept once.
        let mut is_new: Vec<bool> = texts
            .iter()
            .map(|text| !self.known.contains_key(*text))
            .collect();
        in_company(&texts, &mut is_new);
        let fresh = {
            let new = texts.iter().zip(&is_new).filter(|(_, new)| **new);
            let new: Vec<&[u32]> = new.map(|(text, _)| *text).collect();
            self.fresh(&new, compute)?
        };
        match fresh {
            Some(x) if is_new.iter().all(|new| *new) => Ok(x),
            fresh => self.gather(&texts, &is_new, fresh.as_ref(), device),
        }
    }

    /// Computes documents that are not kept, `[tokens, hidden]`, and keeps them.
    fn fresh(
        &mut self,
        texts: &[&[u32]],
        compute: impl FnOnce(&[u32], &Documents) -> Result<Tensor>,
    ) -> Result<Option<Tensor>> {
        if texts.is_empty() {
            return Ok(None);
        }
        let lengths: Vec<usize> = texts.iter().map(|text| text.len()).collect();
        let tokens = texts.concat();
        self.counts.computed += tokens.len() as u64;
        let x = compute(&tokens, &Documents::from_lengths(&lengths))?;
        if self.full.is_none() {
            let values = host::fetch(&x)?;
            let values = host::view::<f32>(&values)?;
            let mut rest: &[f32] = &values;
            for text in texts {
                let (own, others) = rest.split_at(text.len() * self.width);
                self.keep(text, own);
                rest = others;
            }
        }
        Ok(Some(x))
    }

    /// Puts the documents of a batch together, those of `fresh` and those that are kept.
    fn gather(
        &mut self,
        texts: &[&[u32]],
        is_new: &[bool],
        fresh: Option<&Tensor>,
        device: &Device,
    ) -> Result<Tensor> {
        let fresh = fresh.map(host::fetch).transpose()?;
        let fresh = fresh.as_ref().map(host::view::<f32>).transpose()?;
        let mut rest: &[f32] = fresh.as_deref().unwrap_or_default();
        let tokens: usize = texts.iter().map(|text| text.len()).sum();
        let mut values = Vec::with_capacity(tokens * self.width);
        for (text, new) in texts.iter().zip(is_new) {
            if *new {
                let (own, others) = rest.split_at(text.len() * self.width);
                values.extend_from_slice(own);
                rest = others;
            } else {
                self.read(text, &mut values)?;
                self.counts.reused += text.len() as u64;
            }
        }
        Ok(host::tensor(values, (tokens, self.width))?.to_device(device)?)
    }

    /// Keeps a document's numbers if there is room.
    fn keep(&mut self, text: &[u32], values: &[f32]) {
        if self.full.is_some() || self.known.contains_key(text) {
            return;
        }
        let bytes = (values.len() * NUMBER) as u64;
        let end = self.counts.bytes + bytes;
        if end > self.budget {
            self.full = Some(format!("its {} MB are used up", self.budget / 1_000_000));
            return;
        }
        let kept = match &mut self.store {
            Store::Memory => Kept::Here(values.into()),
            Store::File(file) => match write_at(file, self.counts.bytes, values) {
                Ok(()) => Kept::At(self.counts.bytes),
                Err(error) => {
                    self.full = Some(format!("its file cannot be written: {error}"));
                    return;
                }
            },
        };
        self.known.insert(text.into(), kept);
        self.counts.bytes = end;
        self.counts.documents += 1;
    }

    /// Adds the numbers of a document that is kept to `values`.
    fn read(&mut self, text: &[u32], values: &mut Vec<f32>) -> Result<()> {
        match (self.known.get(text), &mut self.store) {
            (Some(Kept::Here(kept)), _) => values.extend_from_slice(kept),
            (Some(Kept::At(begin)), Store::File(file)) => {
                let mut bytes = vec![0; text.len() * self.width * NUMBER];
                file.seek(SeekFrom::Start(*begin))
                    .and_then(|_| file.read_exact(&mut bytes))
                    .map_err(candle_core::Error::from)?;
                let numbers = bytes.as_chunks::<NUMBER>().0;
                values.extend(numbers.iter().map(|number| f32::from_le_bytes(*number)));
            }
            _ => {
                let what = "a document is not where it was kept".to_owned();
                return Err(candle_core::Error::Msg(what).into());
            }
        }
        Ok(())
    }
}

/// Counts known texts among the new ones until these have more than [`FEW_ROWS`] tokens, if there are any.
fn in_company(texts: &[&[u32]], is_new: &mut [bool]) {
    let new = texts.iter().zip(&*is_new).filter(|(_, new)| **new);
    let mut tokens: usize = new.map(|(text, _)| text.len()).sum();
    if tokens == 0 {
        return;
    }
    for (text, new) in texts.iter().zip(is_new) {
        if tokens > FEW_ROWS {
            return;
        }
        if !*new {
            *new = true;
            tokens += text.len();
        }
    }
}

/// Writes numbers at a place of a file.
fn write_at(file: &mut File, begin: u64, values: &[f32]) -> io::Result<()> {
    let bytes: Vec<u8> = values
        .iter()
        .flat_map(|value| value.to_le_bytes())
        .collect();
    file.seek(SeekFrom::Start(begin))?;
    file.write_all(&bytes)
}
