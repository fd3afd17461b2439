//! JSON Schema, as far as rules need it. A keyword that would change the verdict and is not known is refused when the rule is
//! read, never passed over.

use regex::Regex;
use serde_json::{Map, Value};

/// A schema that was understood.
#[derive(Debug)]
pub struct Schema {
    root: Node,
    /// By JSON pointer, `#/$defs/name`.
    definitions: Vec<(String, Node)>,
}

#[derive(Debug, Default)]
struct Node {
    /// `true` and `{}` allow all, `false` nothing.
    never: bool,
    types: Option<Vec<Kind>>,
    allowed: Option<Vec<Value>>,
    properties: Vec<(String, Node)>,
    required: Vec<String>,
    /// For properties that are not named.
    additional: Option<Box<Node>>,
    prefix: Vec<Node>,
    items: Option<Box<Node>>,
    sizes: Vec<Size>,
    bounds: Vec<Bound>,
    unique: bool,
    pattern: Option<Regex>,
    all: Vec<Node>,
    any: Vec<Node>,
    one: Vec<Node>,
    not: Option<Box<Node>>,
    reference: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Null,
    Boolean,
    Integer,
    Number,
    String,
    Array,
    Object,
}

/// How many characters, items or properties there may be.
#[derive(Clone, Copy, Debug)]
struct Size {
    of: Kind,
    least: bool,
    count: usize,
}

#[derive(Clone, Copy, Debug)]
enum Bound {
    Least(f64),
    Above(f64),
    Most(f64),
    Below(f64),
    MultipleOf(f64),
}

/// What says nothing about whether a value fits.
const ANNOTATIONS: &[&str] = &[
    "$schema",
    "$id",
    "$comment",
    "$defs",
    "definitions",
    "title",
    "description",
    "default",
    "examples",
    "deprecated",
    "readOnly",
    "writeOnly",
    "format",
];
/// Schemas within schemas; deeper ones are taken for a mistake.
const MAX_DEPTH: usize = 64;

impl Schema {
    /// # Errors
    /// The place and the keyword that is not understood.
    pub fn read(value: &Value) -> Result<Self, String> {
        let mut definitions = Vec::new();
        for under in ["$defs", "definitions"] {
            for (name, value) in value.get(under).and_then(Value::as_object).into_iter().flatten() {
                let place = format!("#/{under}/{name}");
                definitions.push((place.clone(), Node::read(value, &place, 0)?));
            }
        }
        let schema = Self { root: Node::read(value, "#", 0)?, definitions };
        let mut missing = Vec::new();
        schema.root.references(&mut missing);
        schema.definitions.iter().for_each(|(_, node)| node.references(&mut missing));
        match missing.into_iter().find(|name| schema.named(name).is_none()) {
            Some(name) => Err(format!("'{name}' leads nowhere; only #/$defs/… is followed")),
            None => Ok(schema),
        }
    }

    /// Why a value does not fit, with the place in it; never a word of the value.
    pub fn objection(&self, value: &Value) -> Option<String> {
        self.root.objection(value, "", self, 0)
    }

    fn named(&self, reference: &str) -> Option<&Node> {
        if reference == "#" {
            return Some(&self.root);
        }
        self.definitions.iter().find(|(name, _)| name == reference).map(|(_, node)| node)
    }
}

impl Kind {
    fn named(word: &str) -> Option<Self> {
        Some(match word {
            "null" => Self::Null,
            "boolean" => Self::Boolean,
            "integer" => Self::Integer,
            "number" => Self::Number,
            "string" => Self::String,
            "array" => Self::Array,
            "object" => Self::Object,
            _ => return None,
        })
    }

    const fn word(self) -> &'static str {
        match self {
            Self::Null => "null",
            Self::Boolean => "a boolean",
            Self::Integer => "an integer",
            Self::Number => "a number",
            Self::String => "a string",
            Self::Array => "an array",
            Self::Object => "an object",
        }
    }

    fn of(value: &Value) -> Self {
        match value {
            Value::Null => Self::Null,
            Value::Bool(_) => Self::Boolean,
            Value::Number(number) if number.as_f64().is_some_and(|number| number.fract() == 0.0) => Self::Integer,
            Value::Number(_) => Self::Number,
            Value::String(_) => Self::String,
            Value::Array(_) => Self::Array,
            Value::Object(_) => Self::Object,
        }
    }

    fn holds(self, kind: Self) -> bool {
        self == kind || (self == Self::Number && kind == Self::Integer)
    }
}

impl Node {
    fn read(value: &Value, place: &str, depth: usize) -> Result<Self, String> {
        if depth > MAX_DEPTH {
            return Err(format!("{place}: deeper than {MAX_DEPTH}"));
        }
        let map = match value {
            Value::Bool(allowed) => return Ok(Self { never: !allowed, ..Self::default() }),
            Value::Object(map) => map,
            _ => return Err(format!("{place} is neither an object nor a boolean")),
        };
        let mut node = Self::default();
        for (keyword, value) in map {
            node.keyword(keyword, value, map, place, depth).map_err(|reason| match reason {
                Wrong::Here(reason) => format!("{place}/{keyword} {reason}"),
                Wrong::Below(reason) => reason,
            })?;
        }
        Ok(node)
    }

    fn keyword(
        &mut self,
        keyword: &str,
        value: &Value,
        map: &Map<String, Value>,
        place: &str,
        depth: usize,
    ) -> Result<(), Wrong> {
        let below = |value: &Value| Self::read(value, &format!("{place}/{keyword}"), depth + 1).map_err(Wrong::Below);
        let several = |value: &Value| match value {
            Value::Array(items) if !items.is_empty() => items.iter().map(below).collect::<Result<Vec<_>, _>>(),
            _ => Err(Wrong::here("is not a list of schemas")),
        };
        let size = |of: Kind, least: bool| match value.as_u64() {
            Some(count) => Ok(Size { of, least, count: count as usize }),
            None => Err(Wrong::here("is no count")),
        };
        let number = || value.as_f64().ok_or_else(|| Wrong::here("is no number"));
        match keyword {
            "type" => self.types = Some(types(value)?),
            "enum" => match value {
                Value::Array(values) => self.allowed = Some(values.clone()),
                _ => return Err(Wrong::here("is not a list")),
            },
            "const" => self.allowed = Some(vec![value.clone()]),
            "properties" => {
                for (name, value) in value.as_object().ok_or_else(|| Wrong::here("is no object"))? {
                    let place = format!("{place}/properties/{name}");
                    let node = Self::read(value, &place, depth + 1).map_err(Wrong::Below)?;
                    self.properties.push((name.clone(), node));
                }
            }
            "required" => self.required = strings(value)?,
            "additionalProperties" => self.additional = Some(Box::new(below(value)?)),
            "prefixItems" => self.prefix = several(value)?,
            // Before 2020-12 a list meant what prefixItems means now.
            "items" if value.is_array() => self.prefix = several(value)?,
            "items" => self.items = Some(Box::new(below(value)?)),
            "additionalItems" if map.get("items").is_some_and(Value::is_array) => {
                self.items = Some(Box::new(below(value)?));
            }
            "minItems" => self.sizes.push(size(Kind::Array, true)?),
            "maxItems" => self.sizes.push(size(Kind::Array, false)?),
            "minLength" => self.sizes.push(size(Kind::String, true)?),
            "maxLength" => self.sizes.push(size(Kind::String, false)?),
            "minProperties" => self.sizes.push(size(Kind::Object, true)?),
            "maxProperties" => self.sizes.push(size(Kind::Object, false)?),
            "minimum" => self.bounds.push(Bound::Least(number()?)),
            "exclusiveMinimum" => self.bounds.push(Bound::Above(number()?)),
            "maximum" => self.bounds.push(Bound::Most(number()?)),
            "exclusiveMaximum" => self.bounds.push(Bound::Below(number()?)),
            "multipleOf" => match number()? {
                step if step > 0.0 => self.bounds.push(Bound::MultipleOf(step)),
                _ => return Err(Wrong::here("has to be above 0")),
            },
            "uniqueItems" => self.unique = value.as_bool().ok_or_else(|| Wrong::here("is no boolean"))?,
            "pattern" => {
                let pattern = value.as_str().ok_or_else(|| Wrong::here("is no string"))?;
                let regex = Regex::new(pattern).map_err(|error| Wrong::Here(format!("is no pattern: {error}")))?;
                self.pattern = Some(regex);
            }
            "allOf" => self.all = several(value)?,
            "anyOf" => self.any = several(value)?,
            "oneOf" => self.one = several(value)?,
            "not" => self.not = Some(Box::new(below(value)?)),
            "$ref" => {
                self.reference = Some(value.as_str().ok_or_else(|| Wrong::here("is no string"))?.to_owned());
            }
            known if ANNOTATIONS.contains(&known) => {}
            _ => return Err(Wrong::here("is a keyword that is not known here")),
        }
        Ok(())
    }

    fn references(&self, found: &mut Vec<String>) {
        found.extend(self.reference.clone());
        let boxed = [&self.additional, &self.items, &self.not].into_iter().flatten().map(|node| &**node);
        let lists = [&self.prefix, &self.all, &self.any, &self.one].into_iter().flatten();
        let nodes = self.properties.iter().map(|(_, node)| node).chain(boxed).chain(lists);
        nodes.for_each(|node| node.references(found));
    }

    fn objection(&self, value: &Value, place: &str, schema: &Schema, depth: usize) -> Option<String> {
        let here = |what: String| Some(format!("{}: {what}", if place.is_empty() { "the whole" } else { place }));
        // A reference that leads to itself would never end.
        if self.never || depth > MAX_DEPTH * 4 {
            return here("nothing is allowed there".to_owned());
        }
        let kind = Kind::of(value);
        if let Some(types) = &self.types
            && !types.iter().any(|wanted| wanted.holds(kind))
        {
            let wanted: Vec<&str> = types.iter().map(|kind| kind.word()).collect();
            return here(format!("it is {}, not {}", kind.word(), wanted.join(" or ")));
        }
        if self.allowed.as_ref().is_some_and(|allowed| !allowed.iter().any(|one| same(one, value))) {
            return here("it is none of the values that are allowed".to_owned());
        }
        if let Some(what) = self.sizes.iter().find_map(|size| size.objection(value)) {
            return here(what);
        }
        if let Some(what) =
            value.as_f64().and_then(|number| self.bounds.iter().find_map(|bound| bound.objection(number)))
        {
            return here(what);
        }
        if let (Some(pattern), Value::String(text)) = (&self.pattern, value)
            && !pattern.is_match(text)
        {
            return here(format!("it does not match {pattern}"));
        }
        self.parts(value, place, schema, depth).or_else(|| self.combined(value, place, schema, depth))
    }

    /// Of the items or properties within.
    fn parts(&self, value: &Value, place: &str, schema: &Schema, depth: usize) -> Option<String> {
        match value {
            Value::Object(map) => {
                if let Some(missing) = self.required.iter().find(|name| !map.contains_key(*name)) {
                    return Some(format!(
                        "{}: '{missing}' is missing",
                        if place.is_empty() { "the whole" } else { place }
                    ));
                }
                map.iter().find_map(|(name, value)| {
                    let named = self.properties.iter().find(|(known, _)| known == name);
                    match (named, &self.additional) {
                        (Some((name, node)), _) => node.objection(value, &format!("{place}/{name}"), schema, depth + 1),
                        // Its name is the model's own word.
                        (None, Some(node)) => node.objection(value, &format!("{place}/(another)"), schema, depth + 1),
                        (None, None) => None,
                    }
                })
            }
            Value::Array(items) => {
                if self.unique && (1..items.len()).any(|at| items[..at].iter().any(|earlier| same(earlier, &items[at])))
                {
                    return Some(format!(
                        "{}: an item is there twice",
                        if place.is_empty() { "the whole" } else { place }
                    ));
                }
                items.iter().enumerate().find_map(|(at, item)| {
                    let node = self.prefix.get(at).or(self.items.as_deref())?;
                    node.objection(item, &format!("{place}/{at}"), schema, depth + 1)
                })
            }
            Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => None,
        }
    }

    fn combined(&self, value: &Value, place: &str, schema: &Schema, depth: usize) -> Option<String> {
        let fits = |node: &Self| node.objection(value, place, schema, depth + 1).is_none();
        let shown = if place.is_empty() { "the whole" } else { place };
        let reference = self.reference.as_ref().and_then(|name| schema.named(name));
        if let Some(what) =
            reference.into_iter().chain(&self.all).find_map(|node| node.objection(value, place, schema, depth + 1))
        {
            return Some(what);
        }
        if !self.any.is_empty() && !self.any.iter().any(fits) {
            return Some(format!("{shown}: it fits none of the {} forms that are allowed", self.any.len()));
        }
        if !self.one.is_empty() {
            let fitting = self.one.iter().filter(|node| fits(node)).count();
            if fitting != 1 {
                return Some(format!(
                    "{shown}: it fits {fitting} of the {} forms of which one is allowed",
                    self.one.len()
                ));
            }
        }
        self.not.as_ref().filter(|node| fits(node)).map(|_| format!("{shown}: it has a form that is not allowed"))
    }
}

impl Size {
    fn objection(&self, value: &Value) -> Option<String> {
        let (count, what) = match (self.of, value) {
            (Kind::Array, Value::Array(items)) => (items.len(), "items"),
            (Kind::String, Value::String(text)) => (text.chars().count(), "characters"),
            (Kind::Object, Value::Object(map)) => (map.len(), "properties"),
            _ => return None,
        };
        let (fine, bound) =
            if self.least { (count >= self.count, "at least") } else { (count <= self.count, "at most") };
        (!fine).then(|| format!("it has {count} {what}, not {bound} {}", self.count))
    }
}

impl Bound {
    fn objection(&self, number: f64) -> Option<String> {
        let (fine, bound) = match *self {
            Self::Least(least) => (number >= least, format!("at least {least}")),
            Self::Above(least) => (number > least, format!("above {least}")),
            Self::Most(most) => (number <= most, format!("at most {most}")),
            Self::Below(most) => (number < most, format!("below {most}")),
            Self::MultipleOf(step) => {
                let times = number / step;
                ((times - times.round()).abs() < 1e-9 * times.abs().max(1.0), format!("a multiple of {step}"))
            }
        };
        (!fine).then(|| format!("the number is not {bound}"))
    }
}

/// Equal as JSON Schema has it: 1 and 1.0 are the same number, and properties have no order.
fn same(one: &Value, other: &Value) -> bool {
    match (one, other) {
        (Value::Number(one), Value::Number(other)) => one == other || one.as_f64() == other.as_f64(),
        (Value::Array(one), Value::Array(other)) => {
            one.len() == other.len() && one.iter().zip(other).all(|(one, other)| same(one, other))
        }
        (Value::Object(one), Value::Object(other)) => {
            one.len() == other.len()
                && one.iter().all(|(name, one)| other.get(name).is_some_and(|other| same(one, other)))
        }
        (one, other) => one == other,
    }
}

/// What is wrong with a keyword, or with a schema below it.
enum Wrong {
    Here(String),
    Below(String),
}

impl Wrong {
    fn here(reason: &str) -> Self {
        Self::Here(reason.to_owned())
    }
}

fn types(value: &Value) -> Result<Vec<Kind>, Wrong> {
    let words = match value {
        Value::String(word) => vec![word.clone()],
        _ => strings(value)?,
    };
    words
        .iter()
        .map(|word| Kind::named(word).ok_or_else(|| Wrong::Here(format!("has no type '{word}' in JSON"))))
        .collect()
}

fn strings(value: &Value) -> Result<Vec<String>, Wrong> {
    let items = value.as_array().ok_or_else(|| Wrong::here("is not a list of strings"))?;
    items
        .iter()
        .map(|item| item.as_str().map(str::to_owned).ok_or_else(|| Wrong::here("is not a list of strings")))
        .collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn objection(schema: Value, value: Value) -> Option<String> {
        Schema::read(&schema).unwrap().objection(&value)
    }

    #[test]
    fn each_keyword_allows_what_it_should_and_nothing_else() {
        let tree = json!({
            "$ref": "#/$defs/node",
            "$defs": {"node": {
                "type": "object", "required": ["v"], "additionalProperties": false,
                "properties": {"v": {"type": "integer"}, "next": {"$ref": "#/$defs/node"}},
            }},
        });
        for (schema, fine, bad) in [
            (json!({"type": "integer"}), json!(2.0), json!(2.5)),
            (json!({"type": ["string", "null"]}), json!(null), json!(1)),
            (json!({"enum": ["a", 1]}), json!(1.0), json!("b")),
            (json!({"const": {"a": 1, "b": 2}}), json!({"b": 2, "a": 1}), json!({"a": 1})),
            (json!({"required": ["a"]}), json!({"a": 1, "b": 2}), json!({"b": 2})),
            (json!({"properties": {"a": {"type": "string"}}}), json!({"a": "x", "b": 1}), json!({"a": 1})),
            (json!({"properties": {"a": true}, "additionalProperties": false}), json!({"a": 1}), json!({"b": 1})),
            (json!({"additionalProperties": {"type": "number"}}), json!({"a": 1}), json!({"a": "x"})),
            (json!({"items": {"type": "string"}}), json!(["a", "b"]), json!(["a", 1])),
            (json!({"prefixItems": [{"type": "string"}], "items": false}), json!(["a"]), json!(["a", "b"])),
            (json!({"minItems": 2, "uniqueItems": true}), json!([1, 2]), json!([1, 1.0])),
            (json!({"maxLength": 3}), json!("äöü"), json!("four")),
            (json!({"minProperties": 1}), json!({"a": 1}), json!({})),
            (json!({"minimum": 1, "exclusiveMaximum": 2}), json!(1), json!(2)),
            (json!({"multipleOf": 0.1}), json!(0.7), json!(0.75)),
            (json!({"pattern": "^[A-Z]{2}-"}), json!("HX-310"), json!("hx-310")),
            (json!({"anyOf": [{"type": "string"}, {"minimum": 5}]}), json!(6), json!(4)),
            (json!({"oneOf": [{"minimum": 5}, {"maximum": 7}]}), json!(9), json!(6)),
            (json!({"allOf": [{"minimum": 5}, {"maximum": 7}]}), json!(6), json!(9)),
            (json!({"not": {"type": "string"}}), json!(1), json!("x")),
            (tree, json!({"v": 1, "next": {"v": 2}}), json!({"v": 1, "next": {"v": "two"}})),
            (json!(true), json!(1), json!(null)),
        ] {
            assert_eq!(objection(schema.clone(), fine.clone()), None, "{schema} {fine}");
            if schema != json!(true) {
                assert!(objection(schema.clone(), bad.clone()).is_some(), "{schema} {bad}");
            }
        }
    }

    #[test]
    fn an_objection_names_the_place_and_repeats_no_word_of_the_answer() {
        let schema = json!({"properties": {"list": {"items": {"enum": ["a"]}}}, "additionalProperties": false});
        let found = objection(schema.clone(), json!({"list": ["a", "secret"]})).unwrap();
        assert_eq!(found, "/list/1: it is none of the values that are allowed");
        let found = objection(schema, json!({"secret": 1})).unwrap();
        assert!(!found.contains("secret"), "{found}");
    }

    #[test]
    fn what_would_change_the_verdict_and_is_not_known_is_refused() {
        for (schema, part) in [
            (json!({"patternProperties": {}}), "#/patternProperties is a keyword that is not known"),
            (json!({"properties": {"a": {"tpye": "string"}}}), "#/properties/a/tpye"),
            (json!({"type": "text"}), "no type 'text'"),
            (json!({"$ref": "#/$defs/none"}), "leads nowhere"),
            (json!({"$ref": "other.json"}), "leads nowhere"),
            (json!({"pattern": "("}), "no pattern"),
            (json!({"minLength": -1}), "no count"),
            (json!({"required": "a"}), "list of strings"),
            (json!({"multipleOf": 0}), "above 0"),
            (json!("string"), "neither an object nor a boolean"),
        ] {
            let refused = Schema::read(&schema).unwrap_err();
            assert!(refused.contains(part), "{refused}");
        }
        assert!(Schema::read(&json!({"title": "x", "format": "date", "description": "y", "default": 1})).is_ok());
    }

    #[test]
    fn a_schema_that_leads_to_itself_ends() {
        let endless = json!({"$ref": "#"});
        assert!(objection(endless, json!(1)).is_some());
    }
}
