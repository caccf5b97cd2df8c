//! The file types of llama.cpp's `quantize`, such as `Q4_K_M`: which kind each tensor of a model is stored in.
//!
//! A type is a mix. Most matrices get the kind it is named after; those that suffer most from few bits get
//! more: the head, in some layers the values of attention and the way down of the gated unit
//! (`llama_tensor_get_type` of `llama-quant.cpp`, for dense models and without an importance matrix).

use sparsam_kernels::ggml::GgmlType;

use super::gguf_writer::Kind;

/// A file type.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FileType {
    /// All numbers in four bytes.
    F32,
    /// Two bytes.
    F16,
    /// Two bytes with the range of f32.
    Bf16,
    /// 8.5 bits.
    Q8_0,
    /// 4.5 bits, without scales of scales.
    Q4_0,
    /// 4.5 bits, a little more for some.
    Q4KS,
    /// The same with 6.6 bits for about half of what suffers most.
    Q4KM,
    /// 5.5 bits.
    Q5KS,
    /// The same with 6.6 bits for about half of what suffers most.
    Q5KM,
    /// 6.6 bits.
    Q6K,
}

impl FileType {
    /// All of them.
    pub const ALL: [Self; 10] = [
        Self::F32,
        Self::F16,
        Self::Bf16,
        Self::Q8_0,
        Self::Q4_0,
        Self::Q4KS,
        Self::Q4KM,
        Self::Q5KS,
        Self::Q5KM,
        Self::Q6K,
    ];

    /// Its name as llama.cpp writes it.
    pub fn name(self) -> &'static str {
        match self {
            Self::F32 => "F32",
            Self::F16 => "F16",
            Self::Bf16 => "BF16",
            Self::Q8_0 => "Q8_0",
            Self::Q4_0 => "Q4_0",
            Self::Q4KS => "Q4_K_S",
            Self::Q4KM => "Q4_K_M",
            Self::Q5KS => "Q5_K_S",
            Self::Q5KM => "Q5_K_M",
            Self::Q6K => "Q6_K",
        }
    }

    /// The type of a name, in letters of any case.
    pub fn named(name: &str) -> Option<Self> {
        let mut all = Self::ALL.into_iter();
        all.find(|file_type| file_type.name().eq_ignore_ascii_case(name))
    }

    /// Its number, `general.file_type` (`llama_ftype` of `llama.h`).
    pub fn code(self) -> u32 {
        match self {
            Self::F32 => 0,
            Self::F16 => 1,
            Self::Q4_0 => 2,
            Self::Q8_0 => 7,
            Self::Q4KS => 14,
            Self::Q4KM => 15,
            Self::Q5KS => 16,
            Self::Q5KM => 17,
            Self::Q6K => 18,
            Self::Bf16 => 32,
        }
    }

    /// The kind that it is named after.
    fn usual(self) -> Kind {
        match self {
            Self::F32 => Kind::F32,
            Self::F16 => Kind::F16,
            Self::Bf16 => Kind::Bf16,
            Self::Q8_0 => Kind::Q8_0,
            Self::Q4_0 => Kind::Blocks(GgmlType::Q4_0),
            Self::Q4KS | Self::Q4KM => Kind::Blocks(GgmlType::Q4K),
            Self::Q5KS | Self::Q5KM => Kind::Blocks(GgmlType::Q5K),
            Self::Q6K => Kind::Blocks(GgmlType::Q6K),
        }
    }

    /// The kind of a tensor by its name in GGUF, in a model of so many `layers` whose head is its embedding
    /// where it is `tied`.
    pub fn kind(self, name: &str, shape: &[usize], layers: usize, tied: bool) -> Kind {
        let &[_, columns] = shape else {
            return Kind::F32;
        };
        let usual = self.usual();
        let kind = match (usual, name) {
            (Kind::F32 | Kind::F16 | Kind::Bf16 | Kind::Q8_0, _) => usual,
            // Rows that are no whole blocks of 256 get 8 bits here, not 5.
            (_, "output.weight") => Kind::Blocks(GgmlType::Q6K),
            (_, "token_embd.weight") if tied => Kind::Blocks(GgmlType::Q6K),
            _ => self.of_block(name, layers).unwrap_or(usual),
        };
        kind.for_columns(columns)
    }

    /// More bits for some matrices of some layers.
    fn of_block(self, name: &str, layers: usize) -> Option<Kind> {
        let (layer, part) = name.strip_prefix("blk.")?.split_once('.')?;
        let layer: usize = layer.parse().ok()?;
        let (values, down) = (part == "attn_v.weight", part == "ffn_down.weight");
        // `use_more_bits`: the first and the last eighth, and every third layer between.
        let eighth = layers / 8;
        let more = layer < eighth || layer >= 7 * layers / 8 || (layer - eighth) % 3 == 2;
        match self {
            Self::Q4KM | Self::Q5KM if (values || down) && more => {
                Some(Kind::Blocks(GgmlType::Q6K))
            }
            Self::Q4KS if values && layer < 4 || down && layer < eighth => {
                Some(Kind::Blocks(GgmlType::Q5K))
            }
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(kind: Kind) -> String {
        match kind {
            Kind::Blocks(blocks) => blocks.name().to_owned(),
            kind => format!("{kind:?}").to_uppercase(),
        }
    }

    #[test]
    fn names_are_found_in_any_case() {
        for file_type in FileType::ALL {
            assert_eq!(
                FileType::named(&file_type.name().to_lowercase()),
                Some(file_type)
            );
        }
        assert_eq!(FileType::named("Q3_K_M"), None);
    }

    /// The kinds that `llama-quantize` gives a model of 16 layers.
    #[test]
    fn a_mix_gives_more_bits_to_what_suffers_most() {
        let kind = |file_type: FileType, tensor: &str| {
            name(file_type.kind(tensor, &[512, 2048], 16, true))
        };
        let of = |file_type: FileType, part: &str| -> Vec<usize> {
            let usual = name(file_type.usual());
            let of = |layer: &usize| kind(file_type, &format!("blk.{layer}.{part}.weight"));
            (0..16).filter(|layer| of(layer) != usual).collect()
        };
        let more = [0, 1, 4, 7, 10, 13, 14, 15];
        assert_eq!(of(FileType::Q4KM, "attn_v"), more);
        assert_eq!(of(FileType::Q4KM, "ffn_down"), more);
        assert_eq!(of(FileType::Q5KM, "ffn_down"), more);
        assert_eq!(of(FileType::Q4KM, "attn_q"), [0; 0]);
        assert_eq!(of(FileType::Q4KS, "attn_v"), [0, 1, 2, 3]);
        assert_eq!(of(FileType::Q4KS, "ffn_down"), [0, 1]);
        assert_eq!(of(FileType::Q6K, "attn_v"), [0; 0]);
        assert_eq!(kind(FileType::Q4KM, "blk.0.attn_v.weight"), "Q6_K");
        assert_eq!(kind(FileType::Q4KS, "blk.0.attn_v.weight"), "Q5_K");
        assert_eq!(kind(FileType::Q4_0, "token_embd.weight"), "Q6_K");
        assert_eq!(kind(FileType::F16, "token_embd.weight"), "F16");
        let untied = FileType::Q4KM.kind("token_embd.weight", &[512, 2048], 16, false);
        assert_eq!(name(untied), "Q4_K");
    }

    #[test]
    fn rows_that_are_no_whole_blocks_get_a_kind_that_fits() {
        let kind = |file_type: FileType, tensor: &str, columns: usize| {
            name(file_type.kind(tensor, &[64, columns], 4, true))
        };
        let down = "blk.1.ffn_gate.weight";
        assert_eq!(kind(FileType::Q4KM, down, 96), "Q5_0");
        assert_eq!(kind(FileType::Q5KM, down, 96), "Q5_1");
        assert_eq!(kind(FileType::Q6K, down, 96), "Q8_0");
        assert_eq!(kind(FileType::Q4KM, "token_embd.weight", 96), "Q8_0");
        assert_eq!(kind(FileType::Q4KM, down, 40), "F16");
        assert_eq!(kind(FileType::Q8_0, down, 40), "F16");
        let norm = FileType::Q4KM.kind("output_norm.weight", &[96], 4, true);
        assert_eq!(norm, Kind::F32);
    }
}
