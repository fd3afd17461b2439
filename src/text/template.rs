//! Chat templates: Jinja as `transformers` runs it, with a budget of work, output and depth. A template sees the
//! conversation and the names of special tokens; it reaches nothing else.

use std::{
    collections::VecDeque,
    fmt, io,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{Arc, LazyLock, Mutex, PoisonError},
};

use minijinja::{
    AutoEscape, Environment, Error, ErrorKind, Output, State, Value, escape_formatter, syntax::SyntaxConfig,
    value::ValueKind,
};
use minijinja_contrib::pycompat;
use regex::Regex;

use super::{TextError, json};
use crate::terms::{Digest, Moment, TemplateSource};

/// The longest prompt that a template may render, in bytes.
pub(super) const MAX_RENDERED_BYTES: usize = 16 << 20;
/// The longest template, in bytes.
pub(super) const MAX_TEMPLATE_BYTES: usize = 1 << 20;
/// Template instructions for each rendering, and for each message in it.
const FUEL: u64 = 1_000_000;
const FUEL_PER_MESSAGE: u64 = 10_000;
const RECURSION: usize = 100;
const CACHED: usize = 64;

/// Compiled templates, the most recently used last.
#[derive(Default)]
pub(super) struct Templates {
    cache: Mutex<VecDeque<(Digest, Arc<Environment<'static>>)>>,
}

impl Templates {
    /// Renders `variables` by the template; `messages` is how many messages they hold.
    pub(super) fn render(
        &self,
        source: &TemplateSource,
        variables: &Value,
        messages: usize,
    ) -> Result<String, TextError> {
        let compiled = self.compiled(source)?;
        let mut environment = Environment::clone(&compiled);
        environment.set_fuel(Some(FUEL + FUEL_PER_MESSAGE * messages as u64));
        let mut output = Capped { bytes: Vec::new(), overflowed: false };
        // A fault inside the template engine must cost one request, not the server.
        let rendered = catch_unwind(AssertUnwindSafe(|| {
            environment.get_template(NAME)?.render_captured_to(variables, &mut output).map(|_| ())
        }));
        if output.overflowed {
            return Err(TextError::TooLong { limit: MAX_RENDERED_BYTES });
        }
        match rendered {
            Ok(Ok(())) => String::from_utf8(output.bytes).map_err(|error| TextError::Template(error.to_string())),
            Ok(Err(error)) => Err(TextError::Template(reason(&error))),
            Err(_) => Err(TextError::Template("the template engine failed on it".into())),
        }
    }

    /// Checks that the template compiles.
    pub(super) fn check(&self, source: &TemplateSource) -> Result<(), TextError> {
        self.compiled(source).map(|_| ())
    }

    fn compiled(&self, source: &TemplateSource) -> Result<Arc<Environment<'static>>, TextError> {
        let mut cache = self.cache.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(at) = cache.iter().position(|(digest, _)| *digest == source.digest)
            && let Some(found) = cache.remove(at)
        {
            let compiled = Arc::clone(&found.1);
            cache.push_back(found);
            return Ok(compiled);
        }
        drop(cache);
        let compiled = Arc::new(compile(&source.text)?);
        let mut cache = self.cache.lock().unwrap_or_else(PoisonError::into_inner);
        if cache.len() == CACHED {
            cache.pop_front();
        }
        cache.push_back((source.digest, Arc::clone(&compiled)));
        Ok(compiled)
    }
}

const NAME: &str = "chat";

/// `{% generation %}` marks the assistant's part for training; for rendering it is a block that always holds.
static GENERATION: LazyLock<Option<Regex>> =
    LazyLock::new(|| Regex::new(r"\{%([-+]?)\s*(end)?generation\s*([-+]?)%\}").ok());

fn compile(text: &str) -> Result<Environment<'static>, TextError> {
    if text.len() > MAX_TEMPLATE_BYTES {
        let got = text.len();
        return Err(TextError::Template(format!("the template has {got} bytes, the limit is {MAX_TEMPLATE_BYTES}")));
    }
    let mut text = std::borrow::Cow::Borrowed(text);
    if let Some(generation) = GENERATION.as_ref() {
        text = generation
            .replace_all(&text, |found: &regex::Captures<'_>| {
                let word = if found.get(2).is_some() { "endif" } else { "if true" };
                format!("{{%{} {word} {}%}}", &found[1], &found[3])
            })
            .into_owned()
            .into();
    }
    let mut environment = Environment::new();
    let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build();
    environment.set_syntax(syntax.map_err(|error| TextError::Template(reason(&error)))?);
    environment.set_auto_escape_callback(|_| AutoEscape::None);
    environment.set_recursion_limit(RECURSION);
    environment.set_unknown_method_callback(python_method);
    environment.set_formatter(print_as_python);
    environment.add_filter("tojson", json::tojson);
    environment.add_function("raise_exception", |message: String| -> Result<Value, Error> {
        Err(Error::new(ErrorKind::InvalidOperation, "raised").with_source(Raised(message)))
    });
    environment.add_function("strftime_now", |format: &str| -> Result<String, Error> {
        Moment::now().format(format).map_err(|directive| {
            Error::new(ErrorKind::InvalidOperation, format!("strftime_now knows no '%{directive}'"))
        })
    });
    let added = catch_unwind(AssertUnwindSafe(|| environment.add_template_owned(NAME, text.into_owned())));
    match added {
        Ok(Ok(())) => Ok(environment),
        Ok(Err(error)) => Err(TextError::Template(format!("it does not compile: {}", reason(&error)))),
        Err(_) => Err(TextError::Template("it does not compile".into())),
    }
}

/// What the template said by `raise_exception`.
#[derive(Debug)]
struct Raised(String);

impl fmt::Display for Raised {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Raised {}

fn reason(error: &Error) -> String {
    let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(now) = cause {
        if let Some(Raised(message)) = now.downcast_ref() {
            return message.clone();
        }
        cause = now.source();
    }
    let detail = error.detail().map_or_else(String::new, |detail| format!(": {detail}"));
    let line = error.line().map_or_else(String::new, |line| format!(" (line {line})"));
    format!("{}{detail}{line}", error.kind())
}

/// Prints what Python spells differently as Python does.
fn print_as_python(output: &mut Output<'_>, state: &mut State<'_, '_>, value: &Value) -> Result<(), Error> {
    let spelled = match value.kind() {
        ValueKind::None => "None",
        ValueKind::Bool if value.is_true() => "True",
        ValueKind::Bool => "False",
        _ => return escape_formatter(output, state, value),
    };
    output.write_str(spelled).map_err(Error::from)
}

/// Python's methods on strings, lists and maps: the usual ones by minijinja-contrib, the rest here.
fn python_method(state: &mut State<'_, '_>, value: &Value, method: &str, args: &[Value]) -> Result<Value, Error> {
    use minijinja::value::from_args;
    if let Some(text) = value.as_str() {
        match method {
            "removeprefix" => {
                let (prefix,): (&str,) = from_args(args)?;
                return Ok(text.strip_prefix(prefix).unwrap_or(text).into());
            }
            "removesuffix" => {
                let (suffix,): (&str,) = from_args(args)?;
                return Ok(text.strip_suffix(suffix).unwrap_or(text).into());
            }
            "rsplit" => {
                let (separator, most): (&str, Option<i64>) = from_args(args)?;
                if separator.is_empty() {
                    return Err(Error::new(ErrorKind::InvalidOperation, "empty separator"));
                }
                let mut parts: Vec<&str> = match most.and_then(|most| usize::try_from(most).ok()) {
                    Some(most) => text.rsplitn(most + 1, separator).collect(),
                    None => text.rsplit(separator).collect(),
                };
                parts.reverse();
                return Ok(parts.into_iter().map(Value::from).collect());
            }
            "partition" | "rpartition" => {
                let (separator,): (&str,) = from_args(args)?;
                let parts =
                    if method == "partition" { text.split_once(separator) } else { text.rsplit_once(separator) };
                let [left, middle, right] = match parts {
                    Some((left, right)) => [left, separator, right],
                    None if method == "partition" => [text, "", ""],
                    None => ["", "", text],
                };
                return Ok([left, middle, right].into_iter().map(Value::from).collect());
            }
            _ => {}
        }
    }
    pycompat::unknown_method_callback(state, value, method, args)
}

/// Takes at most [`MAX_RENDERED_BYTES`].
struct Capped {
    bytes: Vec<u8>,
    overflowed: bool,
}

impl io::Write for Capped {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.bytes.len() + bytes.len() > MAX_RENDERED_BYTES {
            self.overflowed = true;
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        self.bytes.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn render(template: &str) -> Result<String, TextError> {
        let turn = Value::from_pairs([("role", "user"), ("content", "hello")]);
        let variables = Value::from_pairs([("messages", Value::from(vec![turn]))]);
        Templates::default().render(&TemplateSource::new(template), &variables, 1)
    }

    fn refusal(template: &str) -> String {
        match render(template) {
            Ok(text) => panic!("{template} rendered {} bytes", text.len()),
            Err(error) => error.to_string(),
        }
    }

    #[test]
    fn a_template_that_never_ends_runs_out_of_fuel() {
        assert!(
            refusal("{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}").contains("fuel")
        );
        assert!(refusal("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}").contains("recursion"));
    }

    #[test]
    fn a_template_that_writes_too_much_is_cut_off() {
        let doubled = "{% for i in range(9999) %}{{ 'x' * 99999 }}{% endfor %}";
        assert!(matches!(render(doubled), Err(TextError::TooLong { limit: MAX_RENDERED_BYTES })));
    }

    #[test]
    fn templates_reach_no_files_and_no_other_templates() {
        for template in
            ["{% include '/etc/passwd' %}", "{% import 'os' as os %}", "{% extends 'x' %}", "{{ open('/etc/passwd') }}"]
        {
            refusal(template);
        }
    }

    #[test]
    fn what_does_not_compile_says_where() {
        let reason = refusal("{% for x in y %}\n{{ x }");
        assert!(reason.contains("does not compile") && reason.contains("line 2"), "{reason}");
        assert!(refusal(&format!("{{{{{}", "(".repeat(100_000))).contains("recursion"));
        assert!(refusal(&" ".repeat(MAX_TEMPLATE_BYTES + 1)).contains("limit"));
    }

    #[test]
    fn a_template_speaks_for_itself() {
        assert!(refusal("{{ raise_exception('No ' ~ messages[0].role) }}").ends_with(": No user"));
        assert!(refusal("{% macro f() %}{{ raise_exception('deep') }}{% endmacro %}{{ f() }}").ends_with(": deep"));
    }

    #[test]
    fn the_date_is_todays() {
        let year = render("{{ strftime_now('%Y') }}").expect("renders").parse::<u32>().expect("a year");
        assert!((2024..2200).contains(&year));
        assert!(refusal("{{ strftime_now('%Q') }}").contains("%Q"));
    }

    #[test]
    fn methods_of_python_strings_are_known() {
        let text = render(
            "{{ 'a.b.c'.rsplit('.', 1)|join('+') }} {{ 'a=b=c'.partition('=')|join('|') }} {{ 'xay'.removeprefix('x').removesuffix('y') }}",
        );
        assert_eq!(text.expect("renders"), "a.b+c a|=|b=c a");
    }

    #[test]
    fn more_templates_than_are_kept_still_render() {
        let templates = Templates::default();
        for number in (0..CACHED * 2).chain([0, 1]) {
            let source = TemplateSource::new(format!("{number}"));
            let text = templates.render(&source, &Value::from(()), 0);
            assert_eq!(text.expect("renders"), number.to_string());
        }
        assert_eq!(templates.cache.lock().expect("not poisoned").len(), CACHED);
    }
}
