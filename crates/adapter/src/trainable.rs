//! What a run trains, and how it plugs into the base: low-rank branches, whole parameters, or both.
//!
//! [`Trainable`] is the base's [`Hook`]. It adds the branches to the projections' products, collects
//! gradients, and holds every trained tensor with its gradient under one ordered registry, which the
//! optimiser, the checkpoint and the adapter's files all read. Trained tensors, their gradients and
//! the optimiser's state are f32.
//!
//! Two things are derived from trained tensors: a model's copy in a narrower type, and the row norms of
//! a DoRA branch. [`Trained::refresh`], which whoever writes a value calls, brings the first up to date
//! and marks the second, which the next pass computes.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use candle_core::{DType, Device, Tensor};
use sparsam_base::model::{EMBEDDING, HEAD};
use sparsam_base::network::Network;
use sparsam_base::prefix::{Prefix, SharedPrefix, Store};
use sparsam_base::projection::{Group, Hook, HookKept, Projection};
use sparsam_kernels::Weight;
use sparsam_kernels::activation::{Activation, gated_backward_in_place};
use sparsam_kernels::dora::{Dora, row_norms};
use sparsam_kernels::dropout::{DropoutKey, dropout};
use sparsam_kernels::host::{clear, copy_into, fetch};
use sparsam_kernels::linear::{add_in_place, bias_grad, linear_weight_grad};
use sparsam_kernels::lora::{
    BranchGrads, InputGrads, Kept, LowRank, Projection as Product, Stacked, branch_dtype,
    lora_gated, lora_gated_backward, lora_kept, lora_linear, lora_linear_backward, takes_bf16,
};

use crate::error::{Error, Result};
use crate::lora::{Bias, BranchShape, Init, LoraConfig};
use crate::principal::principal;
use crate::random::Random;

/// A trained tensor: its value and its gradient, f32 and of one shape.
#[derive(Clone, Debug)]
pub struct Trained {
    /// Updated in place by the optimiser, which brings up to date what is derived from it; [`Trained::refresh`] follows
    /// every other update.
    pub value: Tensor,
    /// Added to by every backward pass, cleared by the optimiser.
    pub grad: Tensor,
    /// The model's own copy in a narrower type, refreshed after each update.
    narrow: Option<Tensor>,
    /// Raised when the value has changed, for the branch whose row norms depend on it.
    changed: Option<Arc<AtomicBool>>,
    /// Whether weight decay applies: to matrices, as is usual, not to norms and biases.
    pub decays: bool,
    /// 1 where it is trained and 0 where it stays, of a tensor that is trained in part.
    mask: Option<Tensor>,
}

impl Trained {
    fn new(value: Tensor) -> candle_core::Result<Self> {
        let grad = value.zeros_like()?;
        let decays = value.rank() > 1;
        Ok(Self {
            value,
            grad,
            narrow: None,
            changed: None,
            decays,
            mask: None,
        })
    }

    /// 1 where it is trained and 0 where it stays, if it is trained in part.
    pub(crate) fn mask(&self) -> Option<&Tensor> {
        self.mask.as_ref()
    }

    /// The model's own copy in a narrower type.
    pub(crate) fn narrow(&self) -> Option<&Tensor> {
        self.narrow.as_ref()
    }

    /// Tells a DoRA branch that the value has changed; its rows are measured anew in the next pass.
    pub(crate) fn changed(&self) {
        if let Some(changed) = &self.changed {
            changed.store(true, Ordering::Relaxed);
        }
    }

    /// Tells what is derived from the value that it has changed: the model's copy in a narrower type is
    /// brought up to date, and a DoRA branch measures its rows anew in the next pass.
    ///
    /// # Errors
    /// An operation on tensors failed.
    pub fn refresh(&self) -> candle_core::Result<()> {
        self.changed();
        let Some(narrow) = &self.narrow else {
            return Ok(());
        };
        copy_into(&self.value, narrow)
    }
}

/// Heads that PEFT trains whole on any classifier.
pub(crate) const CLASSIFIERS: [&str; 2] = ["classifier", "score"];

struct Branch {
    low_rank: LowRank,
    a_grad: Tensor,
    b_grad: Tensor,
    magnitude_grad: Option<Tensor>,
    /// Whether `A` or `B` has changed since the rows were measured (DoRA).
    changed: Arc<AtomicBool>,
}

impl Branch {
    /// Measures the rows of `W + s B A` again if `A` or `B` has changed since. `W` is frozen, so an
    /// optimiser's step costs this once, however many micro-batches and recomputed passes it has.
    fn measure(&self, weight: &Weight) -> candle_core::Result<()> {
        let low_rank = &self.low_rank;
        let Some(dora) = &low_rank.dora else {
            return Ok(());
        };
        if !self.changed.load(Ordering::Relaxed) {
            return Ok(());
        }
        let norms = row_norms(weight, &low_rank.a, &low_rank.b, low_rank.scale)?;
        copy_into(&norms, &dora.norms)?;
        self.changed.store(false, Ordering::Relaxed);
        Ok(())
    }
}

/// What a run trains.
pub struct Trainable {
    /// Branches by the path of their module.
    branches: HashMap<String, Branch>,
    /// Every trained tensor by name: `….lora_A.weight`, `….lora_B.weight`, `….lora_magnitude_vector`,
    /// or the base's own name.
    registry: BTreeMap<String, Trained>,
    dropout: f64,
    /// Whether dropout acts.
    training: bool,
    key: DropoutKey,
    sites: HashMap<String, u32>,
    tied: bool,
    lowest: usize,
    prefix: Option<SharedPrefix>,
}

impl Trainable {
    /// Nothing is trained.
    pub fn none(model: &(impl Network + ?Sized)) -> Self {
        Self {
            branches: HashMap::new(),
            registry: BTreeMap::new(),
            dropout: 0.0,
            training: false,
            key: DropoutKey {
                seed: 0,
                step: 0,
                site: 0,
            },
            sites: HashMap::new(),
            tied: model.tied(),
            lowest: model.layers(),
            prefix: None,
        }
    }

    /// A fresh adapter on a model. Modules to save are made the model's own copies, untied if need be.
    ///
    /// # Errors
    /// Settings that are impossible or match no module.
    pub fn lora(model: &mut impl Network, config: &LoraConfig, seed: u64) -> Result<Self> {
        config.check()?;
        let device = model.device().clone();
        let mut trainable = Self::none(model);
        trainable.dropout = config.lora_dropout;
        trainable.key.seed = seed;
        let mut biases = Vec::new();
        let saved = |path: &str| {
            let mut modules = config.modules_to_save.iter();
            modules.any(|module| model.is_saved(path, module))
        };
        for (layer, group) in model.groups() {
            for projection in &group.projections {
                // What is trained whole gets no branch.
                if saved(&projection.name) {
                    continue;
                }
                let shape = config.branch(&projection.name)?;
                if let Some(shape) = shape {
                    let (out, input) = projection.weight.dims()?;
                    let mut random = Random::new(seed, &projection.name);
                    if config.init == Init::Principal {
                        trainable.add_principal(projection, shape, &mut random, &device)?;
                        trainable.lowest = trainable.lowest.min(layer);
                        if let Some(bias) = &projection.bias
                            && config.bias != Bias::None
                        {
                            biases.push((format!("{}.bias", projection.name), bias.clone()));
                        }
                        continue;
                    }
                    let bound = 1.0 / (input as f64).sqrt();
                    let a = match config.init {
                        Init::Gaussian => {
                            fill((shape.rank, input), || random.normal() / shape.rank as f64)?
                        }
                        _ => fill((shape.rank, input), || {
                            (2.0 * random.uniform() - 1.0) * bound
                        })?,
                    };
                    let bound = 1.0 / (shape.rank as f64).sqrt();
                    let b = match config.init {
                        Init::Random => {
                            fill((out, shape.rank), || (2.0 * random.uniform() - 1.0) * bound)?
                        }
                        _ => Tensor::zeros((out, shape.rank), DType::F32, &Device::Cpu)?,
                    };
                    let (a, b) = (a.to_device(&device)?, b.to_device(&device)?);
                    // The magnitude starts as the norm: the rescaled weight is W + s B A at first.
                    let magnitude = if config.use_dora {
                        Some(row_norms(&projection.weight, &a, &b, shape.scale)?)
                    } else {
                        None
                    };
                    trainable.add_branch(&projection.name, a, b, shape.scale, magnitude)?;
                    trainable.lowest = trainable.lowest.min(layer);
                }
                if let Some(bias) = &projection.bias
                    && (config.bias == Bias::All
                        || config.bias == Bias::LoraOnly && shape.is_some())
                {
                    biases.push((format!("{}.bias", projection.name), bias.clone()));
                    trainable.lowest = trainable.lowest.min(layer);
                }
            }
        }
        if trainable.branches.is_empty() {
            return Err(Error::config(
                "target_modules",
                "matches no module of the model",
            ));
        }
        if device.is_cuda() {
            for (_, group) in model.groups() {
                trainable.stack(group)?;
            }
        }
        for (name, bias) in biases {
            trainable.registry.insert(name, Trained::new(bias)?);
        }
        for module in &config.modules_to_save {
            trainable.save_module(model, module)?;
        }
        Ok(trainable)
    }

    /// Every parameter of the model is trained.
    ///
    /// # Errors
    /// A quantised model: its weights cannot be trained.
    pub fn full(model: &mut impl Network) -> Result<Self> {
        let mut trainable = Self::none(model);
        trainable.lowest = 0;
        let dense = |weight: &Weight| match weight {
            Weight::Dense(weight) => Ok(weight.clone()),
            _ => Err(Error::config(
                "quantize",
                "leaves weights that full fine-tuning cannot train",
            )),
        };
        for (_, group) in model.groups() {
            for projection in &group.projections {
                let weight = dense(&projection.weight)?;
                trainable.add_parameter(format!("{}.weight", projection.name), &weight)?;
                if let Some(bias) = &projection.bias {
                    trainable.add_parameter(format!("{}.bias", projection.name), bias)?;
                }
            }
        }
        for (name, vector) in model.vectors() {
            trainable.add_parameter(name, vector)?;
        }
        for (name, table) in model.tables() {
            trainable.add_parameter(name, &dense(table)?)?;
        }
        Ok(trainable)
    }

    /// Sets the seed of what is dropped in training, where no adapter's settings have done so.
    pub fn set_seed(&mut self, seed: u64) {
        self.key.seed = seed;
    }

    /// Names and tensors of all that is trained, in order of their names.
    pub fn registry(&self) -> &BTreeMap<String, Trained> {
        &self.registry
    }

    /// Where what is trained is.
    pub fn device(&self) -> Device {
        let first = self.registry.values().next();
        first.map_or(Device::Cpu, |trained| trained.value.device().clone())
    }

    /// Number of trained numbers.
    pub fn parameters(&self) -> usize {
        self.registry
            .values()
            .map(|trained| trained.value.elem_count())
            .sum()
    }

    /// Paths of the adapted modules, sorted.
    pub fn adapted(&self) -> Vec<&str> {
        let mut names: Vec<&str> = self.branches.keys().map(String::as_str).collect();
        names.sort_unstable();
        names
    }

    /// The first block that has to be differentiated.
    pub fn lowest_block(&self) -> usize {
        if self.registry.contains_key(EMBEDDING) {
            0
        } else {
            self.lowest
        }
    }

    /// Computes what lies below the lowest trained block once for each document, and keeps it in `store`, at most
    /// `budget` bytes of it. Nothing is kept where the first block or what stands before it is trained.
    pub fn keep_prefix(&mut self, model: &(impl Network + ?Sized), store: Store, budget: u64) {
        let lowest = self.lowest_block();
        self.prefix = (lowest > 0)
            .then(|| SharedPrefix::new(Prefix::new(lowest, model.width(), store, budget)));
    }

    /// Switches dropout on for the micro-batch `step`, or off.
    pub fn set_training(&mut self, step: Option<u64>) {
        self.training = step.is_some();
        self.key.step = step.unwrap_or(0);
    }

    /// Clears all gradients.
    ///
    /// # Errors
    /// An operation on tensors failed.
    pub fn clear_gradients(&self) -> candle_core::Result<()> {
        for trained in self.registry.values() {
            clear(&trained.grad)?;
        }
        Ok(())
    }

    /// Sets a trained tensor's numbers.
    ///
    /// # Errors
    /// A name that is not trained, or another shape.
    pub fn set(&mut self, name: &str, value: &Tensor) -> Result<()> {
        let Some(trained) = self.registry.get(name) else {
            return Err(Error::weight(
                name,
                "belongs to nothing that this adapter's settings adapt",
            ));
        };
        if trained.value.dims() != value.dims() {
            let what = format!(
                "has shape {:?}, expected {:?}",
                value.dims(),
                trained.value.dims()
            );
            return Err(Error::weight(name, what));
        }
        let value = value.to_dtype(DType::F32)?.contiguous()?;
        copy_into(&value, &trained.value)?;
        Ok(trained.refresh()?)
    }

    fn add_branch(
        &mut self,
        module: &str,
        a: Tensor,
        b: Tensor,
        scale: f64,
        magnitude: Option<Tensor>,
    ) -> Result<()> {
        let changed = Arc::new(AtomicBool::new(false));
        let (mut a, mut b) = (Trained::new(a)?, Trained::new(b)?);
        let (mut dora, mut magnitude_grad) = (None, None);
        if let Some(magnitude) = magnitude {
            (a.changed, b.changed) = (Some(Arc::clone(&changed)), Some(Arc::clone(&changed)));
            let norms = magnitude.copy()?;
            let magnitude = Trained::new(magnitude)?;
            dora = Some(Dora {
                magnitude: magnitude.value.clone(),
                norms,
            });
            magnitude_grad = Some(magnitude.grad.clone());
            let name = format!("{module}.lora_magnitude_vector");
            self.registry.insert(name, magnitude);
        }
        let low_rank = LowRank {
            a: a.value.clone(),
            b: b.value.clone(),
            scale,
            dora,
            stacked: None,
        };
        let branch = Branch {
            low_rank,
            a_grad: a.grad.clone(),
            b_grad: b.grad.clone(),
            magnitude_grad,
            changed,
        };
        let site = self.sites.len() as u32;
        self.sites.insert(module.to_owned(), site);
        self.branches.insert(module.to_owned(), branch);
        self.registry.insert(format!("{module}.lora_A.weight"), a);
        self.registry.insert(format!("{module}.lora_B.weight"), b);
        Ok(())
    }

    /// Puts the branches of a group where its products on a GPU read them: each `A` becomes some rows of one matrix, and
    /// its gradient of another, and where the products are of bf16 a copy of `A` and `B` in that follows them.
    fn stack(&mut self, group: &Group) -> candle_core::Result<()> {
        let adapted = |p: &&Projection| self.branches.contains_key(&p.name);
        let adapted: Vec<&Projection> = group.projections.iter().filter(adapted).collect();
        let Some(first) = adapted.first() else {
            return Ok(());
        };
        let dtype = branch_dtype(adapted.iter().map(|p| &p.weight));
        let rank = |p: &Projection| self.branches[&p.name].low_rank.a.dims()[0];
        let depth: usize = adapted.iter().map(|p| rank(p)).sum();
        let like = &self.branches[&first.name].low_rank.a;
        let zeros = |dtype| Tensor::zeros((depth, like.dims()[1]), dtype, like.device());
        let (values, a_grad) = (zeros(DType::F32)?, zeros(DType::F32)?);
        let narrow = (dtype != DType::F32).then(|| zeros(dtype)).transpose()?;
        let mut start = 0;
        for projection in adapted {
            let path = &projection.name;
            let (Some(branch), [Some(mut a), Some(mut b)]) = (
                self.branches.get_mut(path),
                ["A", "B"].map(|part| self.registry.remove(&format!("{path}.lora_{part}.weight"))),
            ) else {
                candle_core::bail!("`{path}` has half a branch");
            };
            let rank = a.value.dims()[0];
            let rows = |of: &Tensor| of.narrow(0, start, rank);
            copy_into(&a.value, &rows(&values)?)?;
            (a.value, a.grad) = (rows(&values)?, rows(&a_grad)?);
            if let Some(narrow) = &narrow {
                a.narrow = Some(rows(narrow)?);
                b.narrow = Some(b.value.to_dtype(dtype)?);
            }
            a.refresh()?;
            (branch.low_rank.a, branch.a_grad) = (a.value.clone(), a.grad.clone());
            branch.low_rank.stacked = Some(Stacked {
                a: narrow.as_ref().unwrap_or(&values).clone(),
                b: b.narrow.as_ref().unwrap_or(&b.value).clone(),
                a_grad: a_grad.clone(),
                start,
            });
            start += rank;
            self.registry.insert(format!("{path}.lora_A.weight"), a);
            self.registry.insert(format!("{path}.lora_B.weight"), b);
        }
        Ok(())
    }

    /// A branch of which one half begins with what the weight does most, divided by the branch's factor, and is
    /// trained; the other half takes that away again and stays: together they begin without effect.
    fn add_principal(
        &mut self,
        projection: &Projection,
        shape: BranchShape,
        random: &mut Random,
        device: &Device,
    ) -> Result<()> {
        let half = shape.rank / 2;
        let (out, input) = projection.weight.dims()?;
        if half > out.min(input) {
            let what = format!(
                "is {half}, but `{}` of {out} x {input} has no more than {} principal directions",
                projection.name,
                out.min(input)
            );
            return Err(Error::config("r", what));
        }
        let weight = fetch(&projection.weight.dequantize()?)?;
        let (b, a) = principal(&weight, half, random)?;
        // The product of both is divided by the factor.
        let part = 1.0 / shape.scale.abs().sqrt();
        let (a, b) = ((a * part)?, (b * (part * shape.scale.signum()))?);
        let ones = |shape: (usize, usize)| Tensor::ones(shape, DType::F32, device);
        let zeros = |shape: (usize, usize)| Tensor::zeros(shape, DType::F32, device);
        let a_mask = Tensor::cat(&[ones((half, input))?, zeros((half, input))?], 0)?;
        let b_mask = Tensor::cat(&[ones((out, half))?, zeros((out, half))?], 1)?;
        let both = Tensor::cat(&[&a, &a], 0)?.to_device(device)?;
        let opposed = Tensor::cat(&[&b, &b.neg()?], 1)?.to_device(device)?;
        let name = &projection.name;
        self.add_branch(
            name,
            both.contiguous()?,
            opposed.contiguous()?,
            shape.scale,
            None,
        )?;
        for (part, mask) in [("lora_A", a_mask), ("lora_B", b_mask)] {
            if let Some(trained) = self.registry.get_mut(&format!("{name}.{part}.weight")) {
                trained.mask = Some(mask.contiguous()?);
            }
        }
        Ok(())
    }

    /// Registers one of the model's parameters; one kept in a narrower type gets an f32 master.
    fn add_parameter(&mut self, name: String, tensor: &Tensor) -> Result<()> {
        let mut trained = Trained::new(tensor.to_dtype(DType::F32)?)?;
        if tensor.dtype() != DType::F32 {
            trained.narrow = Some(tensor.clone());
        }
        self.registry.insert(name, trained);
        Ok(())
    }

    /// Trains a module whole. PEFT names both heads of classifiers on every model, of which it has one.
    fn save_module(&mut self, model: &mut impl Network, module: &str) -> Result<()> {
        let owned = model.own(module)?;
        let known = model.ownable();
        if owned.is_empty() && !(CLASSIFIERS.contains(&module) && known.contains(&module)) {
            let what = if CLASSIFIERS.contains(&module) {
                format!("names `{module}`, the head of a classifier, which this model is not")
            } else {
                format!("names `{module}`, this version saves {}", listed(&known))
            };
            return Err(Error::config("modules_to_save", what));
        }
        for (name, tensor) in owned {
            self.add_parameter(name, &tensor)?;
        }
        self.tied = false;
        Ok(())
    }

    fn products<'a>(&'a self, group: &'a Group) -> Vec<Product<'a>> {
        let branch = |name: &str| self.branches.get(name).map(|branch| &branch.low_rank);
        group
            .projections
            .iter()
            .map(|p| Product {
                weight: &p.weight,
                branch: branch(&p.name),
            })
            .collect()
    }

    /// Where the gradients of the group's branches are added up.
    fn branch_grads(&self, group: &Group) -> Vec<Option<BranchGrads<'_>>> {
        let of = |p: &Projection| {
            self.branches.get(&p.name).map(|b| BranchGrads {
                a: &b.a_grad,
                b: &b.b_grad,
                magnitude: b.magnitude_grad.as_ref(),
            })
        };
        group.projections.iter().map(of).collect()
    }

    /// The input of the group's branches, if anything of it is dropped now.
    fn dropped(&self, group: &Group, x: &Tensor) -> candle_core::Result<Option<Tensor>> {
        let key = self.dropout_key(group);
        key.map(|key| dropout(x, self.dropout, key)).transpose()
    }

    /// The gradient of the group's input, with that of its branches' if some of it was dropped.
    fn joined(&self, group: &Group, dx: InputGrads) -> candle_core::Result<Tensor> {
        if let (Some(key), Some(branch_dx)) = (self.dropout_key(group), &dx.branch_x) {
            add_in_place(&dx.x, &dropout(branch_dx, self.dropout, key)?)?;
        }
        Ok(dx.x)
    }

    /// The key of the group's dropout, if it drops anything now. The branches of a group, which read
    /// the same input, share a mask.
    fn dropout_key(&self, group: &Group) -> Option<DropoutKey> {
        if !self.training || self.dropout == 0.0 {
            return None;
        }
        let site = group
            .projections
            .iter()
            .find_map(|p| self.sites.get(&p.name))?;
        Some(DropoutKey {
            site: *site,
            ..self.key
        })
    }
}

/// "`a` and `b`"
fn listed(names: &[&str]) -> String {
    let names: Vec<String> = names.iter().map(|name| format!("`{name}`")).collect();
    names.join(" and ")
}

/// What [`Hook::forward`] kept of a group.
fn kept_of(kept: HookKept) -> candle_core::Result<Box<Kept>> {
    match kept.and_then(|kept| kept.downcast::<Kept>().ok()) {
        Some(kept) => Ok(kept),
        None => {
            candle_core::bail!("the backward pass of a group was run without its forward pass")
        }
    }
}

fn fill(shape: (usize, usize), mut value: impl FnMut() -> f64) -> candle_core::Result<Tensor> {
    let values: Vec<f32> = (0..shape.0 * shape.1).map(|_| value() as f32).collect();
    Tensor::from_vec(values, shape, &Device::Cpu)
}

impl Hook for Trainable {
    fn forward(
        &mut self,
        group: &Group,
        x: &Tensor,
        keep: bool,
    ) -> candle_core::Result<(Vec<Tensor>, HookKept)> {
        for projection in &group.projections {
            if let Some(branch) = self.branches.get(&projection.name) {
                branch.measure(&projection.weight)?;
            }
        }
        let dropped = self.dropped(group, x)?;
        let (outputs, kept) = lora_linear(x, dropped.as_ref(), &self.products(group))?;
        group.add_biases(&outputs)?;
        Ok((
            outputs,
            keep.then(|| Box::new(kept) as Box<dyn std::any::Any + Send>),
        ))
    }

    fn gated(
        &mut self,
        group: &Group,
        activation: Activation,
        x: &Tensor,
        narrow: bool,
        keep: bool,
    ) -> candle_core::Result<([Tensor; 3], HookKept)> {
        let plain = group.projections.iter().all(|p| p.bias.is_none());
        if let [gate, up] = &*self.products(group)
            && narrow
            && plain
        {
            let dropped = self.dropped(group, x)?;
            let (outputs, kept) = lora_gated(activation, x, dropped.as_ref(), [gate, up])?;
            let kept = keep.then(|| Box::new(kept) as Box<dyn std::any::Any + Send>);
            return Ok((outputs, kept));
        }
        let (outputs, kept) = self.forward(group, x, keep)?;
        Ok((group.gated(activation, outputs, narrow)?, kept))
    }

    fn gated_backward(
        &mut self,
        group: &Group,
        activation: Activation,
        x: Tensor,
        dy: Tensor,
        [gate, up]: [Tensor; 2],
        kept: HookKept,
    ) -> candle_core::Result<(Tensor, Tensor)> {
        if gate.dtype() != DType::BF16 || !self.takes_bf16(group) {
            let dx = self.backward(group, &x, &[dy], kept)?;
            drop(x);
            return gated_backward_in_place(activation, &dx, gate, up);
        }
        let products = self.products(group);
        let (kept, grads) = (kept_of(kept)?, self.branch_grads(group));
        let dropped = self.dropped(group, &x)?;
        lora_gated_backward(
            activation,
            &[dy],
            &x,
            dropped.as_ref(),
            &products,
            &kept,
            &grads,
            [gate, up],
            |dx| self.joined(group, dx),
        )
    }

    fn again(&mut self, group: &Group, x: &Tensor) -> candle_core::Result<HookKept> {
        let dropped = self.dropped(group, x)?;
        let kept = lora_kept(x, dropped.as_ref(), &self.products(group))?;
        Ok(Some(Box::new(kept)))
    }

    /// What trains a weight or a bias itself reads the input and the gradients too.
    fn takes_bf16(&self, group: &Group) -> bool {
        let trained_itself = |name: &str| {
            ["weight", "bias"]
                .iter()
                .any(|part| self.registry.contains_key(&format!("{name}.{part}")))
        };
        takes_bf16(&self.products(group), self.dropout_key(group).is_some())
            && !group.projections.iter().any(|p| trained_itself(&p.name))
    }

    fn backward(
        &mut self,
        group: &Group,
        x: &Tensor,
        dys: &[Tensor],
        kept: HookKept,
    ) -> candle_core::Result<Tensor> {
        let kept = kept_of(kept)?;
        let dropped = self.dropped(group, x)?;
        let grads = self.branch_grads(group);
        let products = self.products(group);
        let dx = lora_linear_backward(dys, x, dropped.as_ref(), &products, &kept, &grads)?;
        let dx = self.joined(group, dx)?;
        for (projection, dy) in group.projections.iter().zip(dys) {
            if let Some(trained) = self.registry.get(&format!("{}.weight", projection.name)) {
                linear_weight_grad(dy, x, &trained.grad)?;
            }
            if let Some(trained) = self.registry.get(&format!("{}.bias", projection.name)) {
                bias_grad(dy, &trained.grad)?;
            }
        }
        Ok(dx)
    }

    fn accumulator(&self, parameter: &str) -> Option<Tensor> {
        let name = if self.tied && parameter == HEAD {
            EMBEDDING
        } else {
            parameter
        };
        self.registry.get(name).map(|trained| trained.grad.clone())
    }

    fn dropout(&self) -> Option<DropoutKey> {
        self.training.then_some(self.key)
    }

    fn prefix(&self) -> Option<SharedPrefix> {
        self.prefix.clone()
    }
}
