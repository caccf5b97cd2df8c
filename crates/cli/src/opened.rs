//! A base model by the name a recipe or an argument gives it: found, checked, loaded, hashed.
//!
//! Every command that uses a model opens it here, so that all of them understand the same names and
//! refuse the same ones with the same words.

use std::io::{self, Read};
use std::path::Path;

use anyhow::Context;
use candle_core::{DType, Device};
use fs_err::File;
use sparsam_base::builtin::{self, Builtin};
use sparsam_base::chat_template::{ChatTemplate, DefaultTemplate};
use sparsam_base::config::ModelConfig;
use sparsam_base::error::Error;
use sparsam_base::files::gguf::GgufFile;
use sparsam_base::files::safetensors::SafetensorsFiles;
use sparsam_base::model::{LoadOptions, Model, Quantize};
use sparsam_base::tokenizer::Tokenizer;
use sparsam_base::weights::Weights;
use sparsam_hub::{Need, is_name};

use crate::device;
use crate::error::{Failure, io_reason};
use crate::from_hub::{self, Source, hub_name};

/// A base model with its tokenizer and template, as a recipe or an argument names it.
pub(crate) struct Opened<M = Model> {
    /// The model.
    pub(crate) model: M,
    /// Its tokenizer, which fits it.
    pub(crate) tokenizer: Tokenizer,
    /// The template asked for, or else the model's own or its family's.
    pub(crate) template: ChatTemplate,
    /// BLAKE3 of the weight files, one after the other in the order of their names, in hexadecimal.
    pub(crate) blake3: String,
    /// Numbers in all parameters.
    pub(crate) parameters: u64,
    /// `model_type` of its configuration.
    pub(crate) architecture: String,
    /// Where it lies: `builtin:NAME`, or the folder, which is in the cache for a model of the Hub.
    pub(crate) place: String,
    /// Where it comes from, if from the Hub.
    pub(crate) hub: Option<Source>,
}

/// What is to be opened, and how.
pub(crate) struct Wanted<'a> {
    /// `builtin:NAME`, a folder in Hugging Face's layout, or a GGUF file.
    pub(crate) name: &'a str,
    /// How the projections are kept.
    pub(crate) quantize: Quantize,
    /// Type of the weights kept as plain numbers. `None` is f32, which is fastest where the
    /// processor has no instructions for bf16, and that of the file for a GGUF file.
    pub(crate) dtype: Option<DType>,
    /// Where the weights go.
    pub(crate) device: &'a Device,
    /// The longest document that will be seen, in tokens.
    pub(crate) max_length: usize,
    /// A file with a Jinja template, or the name of a built-in one.
    pub(crate) chat_template: Option<&'a str>,
    /// Branch, tag or commit of a model on the Hub.
    pub(crate) revision: Option<&'a str>,
    /// Whether nothing is said while a model is fetched.
    pub(crate) quiet: bool,
}

/// Opens a model.
///
/// # Errors
/// A name that means nothing here, files that are missing, damaged or of different models, a
/// `max_length` beyond the model's context, a template that does not compile.
pub(crate) fn open(wanted: &Wanted) -> anyhow::Result<Opened> {
    let options = LoadOptions {
        quantize: wanted.quantize,
        dtype: wanted.dtype.unwrap_or(DType::F32),
        max_length: wanted.max_length,
    };
    let fetched = hub_name(wanted.name)
        .map(|name| from_hub::model(name, wanted.revision, &Need::Model, wanted.quiet))
        .transpose()?;
    let place = match &fetched {
        Some(fetched) => text_of(&fetched.folder)?,
        None => wanted.name,
    };
    // Four and eight bits are expanded to bf16 on a GPU, where that is the fast type, unless f32 is asked for.
    let compute = wanted.dtype.unwrap_or(DType::BF16);
    let device = wanted.device;
    let load = |config, weights: &dyn Weights| {
        let loaded = Model::load_to(config, weights, options, device, compute);
        device::placed(loaded, wanted.name, device)
    };
    let (model, tokenizer, blake3) = match find(place)? {
        Place::Builtin(builtin) => {
            let config = ModelConfig::parse(builtin.config)?;
            check_length(wanted.name, wanted.max_length, &config)?;
            let tokenizer = builtin.tokenizer()?;
            tokenizer.check_fits(config.vocab_size)?;
            let model = load(config, &builtin.tensors()?)?;
            (model, tokenizer, blake3::hash(builtin.weights))
        }
        Place::Folder(folder) => {
            let config = read_config(folder)?;
            check_length(wanted.name, wanted.max_length, &config)?;
            let tokenizer = Tokenizer::from_dir(folder)?;
            tokenizer.check_fits(config.vocab_size)?;
            let files = SafetensorsFiles::in_folder(folder)?;
            let model = load(config, &files)?;
            (model, tokenizer, hash(files.paths())?)
        }
        Place::Gguf(path) => {
            let unusable = || format!("`{}` cannot be used", path.display());
            let file = open_gguf(path)?;
            check_length(wanted.name, wanted.max_length, file.config())?;
            let tokenizer = file.tokenizer()?;
            tokenizer.check_fits(file.config().vocab_size)?;
            let file = file.with_dtype(wanted.dtype);
            let loaded = file.load_to(options, device, compute);
            let model = device::placed(loaded, wanted.name, device).with_context(unusable)?;
            (model, tokenizer, hash(std::iter::once(path))?)
        }
    };
    let architecture = model.config.family.clone();
    let template = match wanted.chat_template {
        Some(name) => template(name, &tokenizer)?,
        None => ChatTemplate::for_model(&tokenizer, &architecture)?,
    };
    Ok(Opened {
        parameters: model.parameters(),
        model,
        tokenizer,
        template,
        blake3: blake3.to_hex().to_string(),
        architecture,
        place: place.to_owned(),
        hub: fetched.map(|fetched| Source {
            commit: fetched.commit,
            license: fetched.license,
        }),
    })
}

impl<M> Opened<M> {
    /// The same with the model as something else.
    pub(crate) fn map<N>(self, change: impl FnOnce(M) -> N) -> Opened<N> {
        Opened {
            model: change(self.model),
            tokenizer: self.tokenizer,
            template: self.template,
            blake3: self.blake3,
            parameters: self.parameters,
            architecture: self.architecture,
            place: self.place,
            hub: self.hub,
        }
    }
}

/// Opens a GGUF file; what is wrong with it is said with its name.
pub(crate) fn open_gguf(path: &Path) -> anyhow::Result<GgufFile> {
    GgufFile::open(path).map_err(|error| match error {
        // These name the file themselves.
        Error::Read { .. } | Error::File { .. } | Error::Unfit { .. } => error.into(),
        error => anyhow::Error::new(error).context(format!("`{}` cannot be used", path.display())),
    })
}

/// What stands between texts and tokens of a model, without its weights.
pub(crate) struct Texts {
    /// The model's shape.
    pub(crate) config: ModelConfig,
    /// The tokenizer.
    pub(crate) tokenizer: Tokenizer,
    /// As in [`Opened`].
    pub(crate) template: ChatTemplate,
}

/// Opens a model's tokenizer and template, by the rules of [`open`].
///
/// # Errors
/// As [`open`], as far as they are not about weights.
pub(crate) fn open_texts(
    name: &str,
    revision: Option<&str>,
    max_length: usize,
    chat_template: Option<&str>,
    quiet: bool,
) -> anyhow::Result<Texts> {
    let fetched = hub_name(name)
        .map(|name| from_hub::model(name, revision, &Need::Model, quiet))
        .transpose()?;
    let place = match &fetched {
        Some(fetched) => text_of(&fetched.folder)?,
        None => name,
    };
    let (config, tokenizer) = match find(place)? {
        Place::Builtin(builtin) => (ModelConfig::parse(builtin.config)?, builtin.tokenizer()?),
        Place::Folder(folder) => (read_config(folder)?, Tokenizer::from_dir(folder)?),
        Place::Gguf(path) => {
            let file = open_gguf(path)?;
            (file.config().clone(), file.tokenizer()?)
        }
    };
    check_length(name, max_length, &config)?;
    tokenizer.check_fits(config.vocab_size)?;
    let template = match chat_template {
        Some(name) => template(name, &tokenizer)?,
        None => ChatTemplate::for_model(&tokenizer, &config.family)?,
    };
    Ok(Texts {
        config,
        tokenizer,
        template,
    })
}

/// The built-in model of a name with its prefix.
///
/// # Errors
/// No such model; the hint lists those there are.
pub(crate) fn find_builtin(name: &str) -> anyhow::Result<Builtin> {
    builtin::find(name).ok_or_else(|| {
        let known: Vec<String> = builtin::names()
            .map(|name| format!("`{}{name}`", builtin::PREFIX))
            .collect();
        Failure::usage(format!("there is no built-in model `{name}`"))
            .hint(format!("the built-in models are {}", known.join(", ")))
            .into()
    })
}

/// Where a model lies.
pub(crate) enum Place<'a> {
    Builtin(Builtin),
    Folder(&'a Path),
    Gguf(&'a Path),
}

impl Place<'_> {
    /// A file beside the weights, if it is there; a GGUF file stands alone.
    ///
    /// # Errors
    /// A file that cannot be read.
    pub(crate) fn companion(&self, name: &str) -> anyhow::Result<Option<Vec<u8>>> {
        match self {
            Self::Builtin(builtin) => Ok(builtin.companion(name).map(<[u8]>::to_vec)),
            Self::Folder(folder) => read_if_there(&folder.join(name)),
            Self::Gguf(_) => Ok(None),
        }
    }
}

/// Whether a model's name is that of a GGUF file.
pub(crate) fn is_gguf(name: &str) -> bool {
    let extension = Path::new(name).extension();
    extension.is_some_and(|extension| extension.eq_ignore_ascii_case("gguf"))
}

/// Where the model of a name lies.
///
/// # Errors
/// A name that means nothing here.
pub(crate) fn find(name: &str) -> anyhow::Result<Place<'_>> {
    if name.starts_with(builtin::PREFIX) {
        return find_builtin(name).map(Place::Builtin);
    }
    let path = Path::new(name);
    if is_gguf(name) && !path.is_dir() {
        if !path.exists() {
            return Err(Failure::usage(format!("there is no file `{name}`"))
                .hint("name a GGUF file as llama.cpp uses it, in one part")
                .into());
        }
        return Ok(Place::Gguf(path));
    }
    if path.is_dir() {
        if path.join("adapter_config.json").exists() && !path.join("config.json").exists() {
            return Err(Failure::usage(format!(
                "`{name}` is an adapter, a base model is expected here"
            ))
            .hint("name the base as the model and this folder as the adapter")
            .into());
        }
        return Ok(Place::Folder(path));
    }
    if path.exists() {
        return Err(Failure::usage(format!(
            "`{name}` is a file, a base model is a folder or a .gguf file"
        ))
        .hint("name the folder that holds config.json, tokenizer.json and model.safetensors")
        .into());
    }
    let hint = if is_name(name) {
        format!(
            "there is something called `{}` here, so a path is meant; for the model of that name on \
             the Hub write `{}{name}`",
            name.split('/').next().unwrap_or_default(),
            from_hub::PREFIX
        )
    } else if builtin::find(name).is_some() {
        format!("the built-in model is `{}{name}`", builtin::PREFIX)
    } else {
        "a model is a folder with config.json, tokenizer.json and model.safetensors, a name on the \
         Hub such as `owner/name`, or `builtin:sprout`"
            .to_owned()
    };
    Err(Failure::usage(format!("there is no folder `{name}`"))
        .hint(hint)
        .into())
}

/// A path as text.
pub(crate) fn text_of(path: &Path) -> anyhow::Result<&str> {
    path.to_str().ok_or_else(|| {
        Failure::run(format!("the path `{}` is not UTF-8", path.display()))
            .hint("set HF_HOME to another folder")
            .into()
    })
}

fn read_config(folder: &Path) -> anyhow::Result<ModelConfig> {
    let path = folder.join("config.json");
    let text = std::fs::read_to_string(&path)
        .map_err(|source| sparsam_base::error::Error::Read { path, source })?;
    ModelConfig::parse(&text).with_context(|| format!("`{}` cannot be used", folder.display()))
}

fn check_length(name: &str, max_length: usize, config: &ModelConfig) -> anyhow::Result<()> {
    within(name, max_length, config.max_position_embeddings)
}

/// Refuses a length beyond the longest text a model reads.
pub(crate) fn within(name: &str, max_length: usize, context: usize) -> anyhow::Result<()> {
    if max_length <= context {
        return Ok(());
    }
    Err(Failure::usage(format!(
        "`max_length` is {max_length}, the model `{name}` reads at most {context} tokens"
    ))
    .hint(format!("set `max_length` to {context} or less"))
    .into())
}

fn template(name: &str, tokenizer: &Tokenizer) -> anyhow::Result<ChatTemplate> {
    let text = |token: Option<(u32, &str)>| token.map_or(String::new(), |(_, text)| text.into());
    let (bos, eos) = (text(tokenizer.bos()), text(tokenizer.eos()));
    let Some(default) = DefaultTemplate::named(name) else {
        let source = std::fs::read_to_string(name).map_err(|error| {
            Failure::usage(format!(
                "cannot read the chat template `{name}`: {}",
                io_reason(&error)
            ))
            .hint(format!(
                "name a file with a Jinja template, or one of {}",
                DefaultTemplate::NAMES.join(", ")
            ))
        })?;
        return ChatTemplate::new(&source, &bos, &eos)
            .with_context(|| format!("`{name}` cannot be used"));
    };
    let missing: Vec<String> = default
        .needs()
        .iter()
        .filter(|token| tokenizer.token_id(token).is_none())
        .map(|token| format!("`{token}`"))
        .collect();
    if !missing.is_empty() {
        return Err(Failure::usage(format!(
            "the chat template `{name}` needs {}, which the model's tokenizer does not have",
            missing.join(" and ")
        ))
        .hint("leave `chat_template` out, or choose `plain`")
        .into());
    }
    Ok(ChatTemplate::new(default.source(), &bos, &eos)?)
}

/// BLAKE3 of files, one after the other.
pub(crate) fn hash<'a>(paths: impl Iterator<Item = &'a Path>) -> io::Result<blake3::Hash> {
    let mut hasher = blake3::Hasher::new();
    let mut buffer = vec![0u8; 1 << 20];
    for path in paths {
        let mut file = File::open(path)?;
        loop {
            match file.read(&mut buffer)? {
                0 => break,
                count => hasher.update(&buffer[..count]),
            };
        }
    }
    Ok(hasher.finalize())
}

/// The bytes of a file; none where there is none.
///
/// # Errors
/// A file that cannot be read.
pub(crate) fn read_if_there(path: &Path) -> anyhow::Result<Option<Vec<u8>>> {
    match std::fs::read(path) {
        Ok(bytes) => Ok(Some(bytes)),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(Error::Read {
            path: path.to_owned(),
            source,
        }
        .into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SPROUT: Wanted = Wanted {
        name: "builtin:sprout",
        quantize: Quantize::None,
        dtype: None,
        device: &Device::Cpu,
        max_length: 64,
        chat_template: None,
        revision: None,
        quiet: true,
    };

    fn refusal(wanted: &Wanted) -> String {
        match open(wanted) {
            Ok(_) => panic!("it was opened"),
            Err(error) => error.to_string(),
        }
    }

    #[test]
    fn a_model_is_the_same_built_in_and_as_a_folder() {
        let parent = tempfile::tempdir().expect("a folder");
        let folder = parent.path().join("sprout");
        let builtin = find_builtin("builtin:sprout").expect("it is built in");
        builtin.unpack(&folder).expect("written");
        let name = folder.to_str().expect("a name");
        let (inside, outside) = (
            open(&SPROUT).expect("opened"),
            open(&Wanted { name, ..SPROUT }).expect("opened"),
        );
        assert_eq!(inside.parameters, outside.parameters);
        assert_eq!(inside.architecture, outside.architecture);
        assert_eq!(inside.blake3, blake3::hash(builtin.weights).to_string());
        let bytes = std::fs::read(folder.join("model.safetensors")).expect("read");
        assert_eq!(outside.blake3, blake3::hash(&bytes).to_string());
        // Every number of the file is a parameter, the header apart.
        let header = u64::from_le_bytes(bytes[..8].try_into().expect("eight bytes"));
        assert_eq!(outside.parameters, (bytes.len() as u64 - 8 - header) / 4);
    }

    #[test]
    fn a_length_beyond_the_model_names_the_longest() {
        let context = open(&SPROUT)
            .expect("opened")
            .model
            .config
            .max_position_embeddings;
        let wanted = Wanted {
            max_length: context + 1,
            ..SPROUT
        };
        assert!(refusal(&wanted).ends_with(&format!("reads at most {context} tokens")));
        let wanted = Wanted {
            max_length: context,
            ..SPROUT
        };
        assert!(open(&wanted).is_ok());
    }

    #[test]
    fn templates_come_from_files_and_by_name() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("shout.jinja");
        std::fs::write(&path, "{{ messages[0].content | upper }}!").expect("written");
        let with = |name: &str| {
            open(&Wanted {
                chat_template: Some(name),
                ..SPROUT
            })
        };
        let path = path.to_str().expect("a name");
        let messages = [sparsam_base::chat_template::Message::new("user", "hello")];
        let text = |template: &ChatTemplate| template.render(&messages, true).expect("text").text;
        assert_eq!(text(&with(path).expect("opened").template), "HELLO!");
        assert!(text(&with("plain").expect("opened").template).ends_with("### Assistant\n"));
        let wanted = |name| Wanted {
            chat_template: Some(name),
            ..SPROUT
        };
        assert!(refusal(&wanted("chatml")).contains("needs `<|im_start|>`"));
        assert!(refusal(&wanted("no-such-file")).contains("no-such-file"));
    }
}
