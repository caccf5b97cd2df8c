//! Templates for models that come without one.
//!
//! A base model has seen no chat, so any clear form will do, as long as training and generation use
//! the same: they are short, mark the assistant's answer together with the token that ends
//! it, and need no special tokens the model lacks.

/// Which of the built-in templates.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DefaultTemplate {
    /// Headings in plain text; the answer ends in the tokenizer's EOS token. Works with every model.
    Plain,
    /// `<|im_start|>role … <|im_end|>`, as Qwen and SmolLM use it.
    ChatMl,
    /// `<|start_header_id|>role<|end_header_id|> … <|eot_id|>`, as Llama 3 uses it.
    Llama3,
    /// `[INST] … [/INST] …`, as Mistral's first instruction models use it.
    Mistral,
}

impl DefaultTemplate {
    /// The usual form for a `model_type` of `config.json`; plain for families without one.
    pub fn for_family(family: &str) -> Self {
        match family {
            "qwen2" | "qwen3" | "smollm3" => Self::ChatMl,
            "mistral" => Self::Mistral,
            _ => Self::Plain,
        }
    }

    /// Names by which a user may ask for one.
    pub const NAMES: [&'static str; 4] = ["chatml", "llama3", "mistral", "plain"];

    /// The template of a name a user gave.
    pub fn named(name: &str) -> Option<Self> {
        match name {
            "chatml" => Some(Self::ChatMl),
            "llama3" => Some(Self::Llama3),
            "mistral" => Some(Self::Mistral),
            "plain" => Some(Self::Plain),
            _ => None,
        }
    }

    /// Name for messages and reports.
    pub fn name(self) -> &'static str {
        match self {
            Self::Plain => "plain",
            Self::ChatMl => "ChatML",
            Self::Llama3 => "Llama 3",
            Self::Mistral => "Mistral",
        }
    }

    /// Tokens of the vocabulary the template cannot do without.
    pub fn needs(self) -> &'static [&'static str] {
        match self {
            Self::ChatMl => &["<|im_start|>", "<|im_end|>"],
            Self::Llama3 => &["<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"],
            Self::Plain | Self::Mistral => &[],
        }
    }

    /// The template itself.
    pub fn source(self) -> &'static str {
        match self {
            Self::Plain => PLAIN,
            Self::ChatMl => CHATML,
            Self::Llama3 => LLAMA3,
            Self::Mistral => MISTRAL,
        }
    }
}

const PLAIN: &str = "\
{{- bos_token }}
{%- for message in messages %}
    {%- if message.role == 'assistant' %}
        {{- '### Assistant\\n' }}
        {%- generation %}
            {{- message.content | trim + eos_token }}
        {%- endgeneration %}
        {{- '\\n\\n' }}
    {%- else %}
        {{- '### ' + message.role | capitalize + '\\n' + message.content | trim + '\\n\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '### Assistant\\n' }}
{%- endif %}";

const CHATML: &str = "\
{%- for message in messages %}
    {{- '<|im_start|>' + message.role + '\\n' }}
    {%- if message.role == 'assistant' %}
        {%- generation %}
            {{- message.content + '<|im_end|>' }}
        {%- endgeneration %}
    {%- else %}
        {{- message.content + '<|im_end|>' }}
    {%- endif %}
    {{- '\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
{%- endif %}";

const LLAMA3: &str = "\
{{- bos_token }}
{%- for message in messages %}
    {{- '<|start_header_id|>' + message.role + '<|end_header_id|>\\n\\n' }}
    {%- if message.role == 'assistant' %}
        {%- generation %}
            {{- message.content | trim + '<|eot_id|>' }}
        {%- endgeneration %}
    {%- else %}
        {{- message.content | trim + '<|eot_id|>' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}
{%- endif %}";

const MISTRAL: &str = "\
{{- bos_token }}
{%- set state = namespace(system='') %}
{%- for message in messages %}
    {%- if message.role == 'system' %}
        {%- set state.system = message.content | trim + '\\n\\n' %}
    {%- elif message.role == 'user' %}
        {{- '[INST] ' + state.system + message.content | trim + ' [/INST]' }}
        {%- set state.system = '' %}
    {%- elif message.role == 'assistant' %}
        {%- generation %}
            {{- ' ' + message.content | trim + eos_token }}
        {%- endgeneration %}
    {%- else %}
        {{- raise_exception('only the roles system, user and assistant are known here') }}
    {%- endif %}
{%- endfor %}";
