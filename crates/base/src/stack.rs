//! Blocks one after the other: forward, and back as far down as anything is trained.
//!
//! With checkpointing a block keeps its input alone, or what comes before its unit, and the rest is computed again when
//! its turn comes; the results are the same bits. Decoders and encoders walk alike.

use candle_core::{Result, Tensor};
use sparsam_kernels::parked::Parked;

use crate::block::{self, Block, Pass};
use crate::encoder;
use crate::encoder::block::{EncoderBlock, EncoderPass};
use crate::projection::Hook;

/// What is computed again on the way back, and not kept until then.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Checkpointing {
    /// Nothing but norm outputs and activations.
    #[default]
    Off,
    /// The units too, whose inner numbers are most of what a block keeps and not much of what it computes; but for
    /// the last block's, which would be computed again at once.
    Units,
    /// Whole blocks, of which only the inputs are kept.
    Blocks,
    /// The same, and the inputs wait in the host's memory where the model is on a GPU; but for the last block's, which is
    /// needed at once.
    Parked,
}

/// How much of a forward pass is kept for the way back.
#[derive(Clone, Copy, Debug)]
pub struct Keep {
    /// The first block that is differentiated.
    pub lowest: usize,
    /// What is computed again.
    pub checkpointing: Checkpointing,
}

/// How much a block keeps of its forward pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Extent {
    /// Nothing: there is no way back, or the block is computed again.
    Nothing,
    /// What comes before its unit.
    BeforeUnit,
    /// All that its way back needs.
    All,
}

/// A block as the stack sees it.
pub(crate) trait Step {
    /// What its backward pass needs of its forward pass.
    type Kept;
    /// What all blocks share in one pass over a batch.
    type Pass<'a>;

    /// Its output for `x`, and what is kept if anything is.
    fn forward(
        &self,
        x: &Tensor,
        pass: &Self::Pass<'_>,
        hook: &mut dyn Hook,
        extent: Extent,
    ) -> Result<(Tensor, Option<Self::Kept>)>;

    /// What [`Step::forward`] keeps, [`Extent::BeforeUnit`], of an input whose output is known already.
    fn again(
        &self,
        x: &Tensor,
        pass: &Self::Pass<'_>,
        hook: &mut dyn Hook,
    ) -> Result<Option<Self::Kept>>;

    /// Gradient of its input, from that of its output. What comes before the unit has been kept at least.
    fn backward(
        &self,
        dy: &Tensor,
        kept: Self::Kept,
        pass: &Self::Pass<'_>,
        hook: &mut dyn Hook,
    ) -> Result<Tensor>;
}

macro_rules! step {
    ($block:ty, $kept:ty, $pass:ident) => {
        impl Step for $block {
            type Kept = $kept;
            type Pass<'a> = $pass<'a>;

            fn forward(
                &self,
                x: &Tensor,
                pass: &$pass,
                hook: &mut dyn Hook,
                extent: Extent,
            ) -> Result<(Tensor, Option<$kept>)> {
                <$block>::forward(self, x, pass, hook, extent)
            }

            fn again(
                &self,
                x: &Tensor,
                pass: &$pass,
                hook: &mut dyn Hook,
            ) -> Result<Option<$kept>> {
                <$block>::again(self, x, pass, hook)
            }

            fn backward(
                &self,
                dy: &Tensor,
                kept: $kept,
                pass: &$pass,
                hook: &mut dyn Hook,
            ) -> Result<Tensor> {
                <$block>::backward(self, dy, kept, pass, hook)
            }
        }
    };
}

step!(Block, block::Kept, Pass);
step!(EncoderBlock, encoder::block::Kept, EncoderPass);

/// What the way back through blocks needs of the way forward.
pub struct StackKept<K> {
    /// First block that is differentiated.
    lowest: usize,
    /// Of each block from there on.
    blocks: Vec<BlockKept<K>>,
}

/// What is kept of one block.
enum BlockKept<K> {
    /// Its input, from which it is computed again.
    Input(Parked),
    /// What its backward pass needs.
    Numbers(K),
}

/// The output of the last block for the input `x` of block `first`, and what the way back needs if `keep` says how
/// much.
pub(crate) fn forward<S: Step>(
    blocks: &[S],
    first: usize,
    mut x: Tensor,
    pass: &S::Pass<'_>,
    hook: &mut dyn Hook,
    keep: Option<Keep>,
) -> Result<(Tensor, StackKept<S::Kept>)> {
    let lowest = keep.map_or(blocks.len(), |keep| keep.lowest);
    let checkpointing = keep.map_or(Checkpointing::Off, |keep| keep.checkpointing);
    let mut all = StackKept {
        lowest,
        blocks: Vec::new(),
    };
    for (layer, block) in blocks.iter().enumerate().skip(first) {
        let last = layer + 1 == blocks.len();
        let extent = match checkpointing {
            _ if layer < lowest => Extent::Nothing,
            Checkpointing::Blocks | Checkpointing::Parked => {
                let leaves = checkpointing == Checkpointing::Parked && !last;
                all.blocks.push(BlockKept::Input(if leaves {
                    Parked::new(x.clone())?
                } else {
                    Parked::here(x.clone())
                }));
                Extent::Nothing
            }
            Checkpointing::Units if !last => Extent::BeforeUnit,
            Checkpointing::Units | Checkpointing::Off => Extent::All,
        };
        let (y, kept) = block.forward(&x, pass, hook, extent)?;
        all.blocks.extend(kept.map(BlockKept::Numbers));
        x = y;
        // The copy has had the time of the block.
        if let Some(BlockKept::Input(input)) = all.blocks.last_mut() {
            input.leave()?;
        }
    }
    Ok((x, all))
}

/// Gradient of the input of the lowest block that is differentiated, from that of the last block's output.
pub(crate) fn backward<S: Step>(
    blocks: &[S],
    mut dx: Tensor,
    mut all: StackKept<S::Kept>,
    pass: &S::Pass<'_>,
    hook: &mut dyn Hook,
) -> Result<Tensor> {
    for block in blocks[all.lowest..].iter().rev() {
        let kept = match all.blocks.pop() {
            Some(BlockKept::Input(input)) => {
                let input = input.into_tensor()?;
                // That of the next comes back in the time of this block.
                if let Some(BlockKept::Input(next)) = all.blocks.last_mut() {
                    next.fetch()?;
                }
                block.again(&input, pass, hook)?
            }
            Some(BlockKept::Numbers(kept)) => Some(kept),
            None => None,
        };
        let Some(kept) = kept else {
            candle_core::bail!("a block kept nothing for its backward pass");
        };
        dx = block.backward(&dx, kept, pass, hook)?;
    }
    Ok(dx)
}
