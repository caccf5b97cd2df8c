//! The settings of a LoRA adapter, with PEFT's names and meanings.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::targets::{Targets, by_pattern, layer_of};

/// Which biases of the base are trained beside the adapter.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Bias {
    /// None.
    #[default]
    None,
    /// All.
    All,
    /// Those of the adapted modules.
    LoraOnly,
}

/// How the branches start. `B` is zero in all but [`Init::Random`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Init {
    /// `A` uniform in `±1/√in` (Kaiming uniform with `a = √5`).
    #[default]
    Kaiming,
    /// `A` normal with deviation `1/r`.
    Gaussian,
    /// `A` as by default and `B` uniform too: the branch has an effect from the start.
    Random,
    /// `B A` is what the weight does most (PiSSA). Half of the branch is trained; the other half takes away what
    /// that half began with, and stays. See [`LoraConfig::for_principal`].
    Principal,
}

/// Settings of a LoRA adapter.
#[derive(Clone, Debug, PartialEq)]
pub struct LoraConfig {
    /// Rank.
    pub r: usize,
    /// The branch is multiplied by `alpha / r`.
    pub lora_alpha: f64,
    /// Share of the branch's input that is dropped in training.
    pub lora_dropout: f64,
    /// Modules that are adapted.
    pub target_modules: Targets,
    /// Modules that are not, though targeted.
    pub exclude_modules: Option<Targets>,
    /// Multiply by `alpha / √r` instead.
    pub use_rslora: bool,
    /// Train the length of every row of an adapted weight apart from its direction (DoRA).
    pub use_dora: bool,
    /// Ranks of single modules.
    pub rank_pattern: BTreeMap<String, usize>,
    /// Alphas of single modules.
    pub alpha_pattern: BTreeMap<String, f64>,
    /// Layers that are adapted; all, if not given.
    pub layers_to_transform: Option<Vec<usize>>,
    /// Name of the list of layers in a path.
    pub layers_pattern: Vec<String>,
    /// Modules that are trained whole and saved with the adapter.
    pub modules_to_save: Vec<String>,
    /// Biases that are trained.
    pub bias: Bias,
    /// How the branches start.
    pub init: Init,
}

impl Default for LoraConfig {
    fn default() -> Self {
        Self {
            r: 16,
            lora_alpha: 32.0,
            lora_dropout: 0.0,
            target_modules: Targets::Text(crate::targets::ALL_LINEAR.to_owned()),
            exclude_modules: None,
            use_rslora: false,
            use_dora: false,
            rank_pattern: BTreeMap::new(),
            alpha_pattern: BTreeMap::new(),
            layers_to_transform: None,
            layers_pattern: Vec::new(),
            modules_to_save: Vec::new(),
            bias: Bias::None,
            init: Init::Kaiming,
        }
    }
}

/// Rank and factor of one branch.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct BranchShape {
    /// Rank.
    pub rank: usize,
    /// Factor on the branch.
    pub scale: f64,
}

impl LoraConfig {
    /// Rank and factor of the branch on `module`, if it is adapted.
    ///
    /// # Errors
    /// A pattern that is no regular expression.
    pub fn branch(&self, module: &str) -> Result<Option<BranchShape>> {
        if !self.target_modules.matches(module)? {
            return Ok(None);
        }
        if let Some(excluded) = &self.exclude_modules
            && excluded.matches(module)?
        {
            return Ok(None);
        }
        if let Some(layers) = &self.layers_to_transform
            && !layer_of(module, &self.layers_pattern).is_some_and(|layer| layers.contains(&layer))
        {
            return Ok(None);
        }
        let rank = *by_pattern(&self.rank_pattern, module)?.unwrap_or(&self.r);
        let alpha = *by_pattern(&self.alpha_pattern, module)?.unwrap_or(&self.lora_alpha);
        let divisor = if self.use_rslora {
            (rank as f64).sqrt()
        } else {
            rank as f64
        };
        Ok(Some(BranchShape {
            rank,
            scale: alpha / divisor,
        }))
    }

    /// The same settings with room for the halves of [`Init::Principal`]: twice the ranks, at the same factors. So
    /// it is an ordinary adapter from the first step on, what PEFT makes of one when it is saved
    /// (`path_initial_model_for_weight_conversion`).
    #[must_use]
    pub fn for_principal(self) -> Self {
        let more = if self.use_rslora { 2f64.sqrt() } else { 2.0 };
        let ranks = self.rank_pattern.into_iter();
        let mut alphas: BTreeMap<String, f64> = self.alpha_pattern;
        for alpha in alphas.values_mut() {
            *alpha *= more;
        }
        Self {
            r: 2 * self.r,
            lora_alpha: more * self.lora_alpha,
            rank_pattern: ranks.map(|(name, rank)| (name, 2 * rank)).collect(),
            alpha_pattern: alphas,
            init: Init::Principal,
            ..self
        }
    }

    /// Checks the numbers.
    ///
    /// # Errors
    /// An impossible value, named.
    pub fn check(&self) -> Result<()> {
        if self.r == 0 || self.rank_pattern.values().any(|rank| *rank == 0) {
            return Err(Error::config("r", "is 0, a rank is at least 1"));
        }
        if !(0.0..1.0).contains(&self.lora_dropout) {
            return Err(Error::config(
                "lora_dropout",
                format!("is {}, expected 0 up to 1", self.lora_dropout),
            ));
        }
        if self.init == Init::Principal && self.use_dora {
            return Err(Error::config(
                "use_dora",
                "does not go with `init_lora_weights: pissa`, which saves a plain adapter",
            ));
        }
        if !self.lora_alpha.is_finite() {
            return Err(Error::config("lora_alpha", "is not a finite number"));
        }
        Ok(())
    }
}
