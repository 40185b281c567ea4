//! Parsing of templates, and the rewriting of their syntax tree so that whatever can grow or take long passes through
//! one of the filters named here, which spend the budget. minijinja has hooks for filters, functions, methods and
//! output, but none for operators, text between tags and assignments, and it would compute operators of constants
//! while it compiles.

use minijinja::Value;
use minijinja::machinery::ast::{
    BinOp, BinOpKind, Call, CallArg, CallBlock, Compare, CompareOp, Const, Do, EmitExpr, Expr, Filter,
    FilterBlock, ForLoop, GetAttr, GetItem, IfCond, IfExpr, List, Macro, Map, Set, SetBlock, Spanned, Stmt,
    Template, Test, Tuple, UnaryOp, UnaryOpKind, Var, WithBlock,
};
use minijinja::machinery::{Token, tokenize};
use minijinja::syntax::SyntaxConfig;

/// Filter that spends what a value takes when all of it is read or written.
pub(super) const WHOLE: &str = "__whole";
/// Filter that spends what a copy of a value takes.
pub(super) const COPIED: &str = "__copied";
/// Filter that makes a list of what is computed item by item, so that no chains of such values arise.
pub(super) const LISTED: &str = "__listed";
/// Filter for a value that is kept in a namespace or a loop.
pub(super) const KEPT: &str = "__kept";
/// As [`WHOLE`], of a value that becomes part of a text: a floating-point number is written as Python writes it.
pub(super) const WRITTEN: &str = "__written";
/// Filter that multiplies.
pub(super) const TIMES: &str = "__times";
/// Filter that tells the rest of a division, or formats a text.
pub(super) const REST: &str = "__rest";
/// Filter that tells which of two values is less, and refuses those that cannot be ordered.
pub(super) const ORDERED: &str = "__ordered";
/// Filter that tells whether two values are equal.
pub(super) const EQUAL: &str = "__equal";
/// Filter that takes a part of a text or list.
pub(super) const PART: &str = "__part";
/// Filter that looks up what may be a method of a map.
pub(super) const METHOD: &str = "__method";
/// Filter for a value of which an item is looked up.
pub(super) const INDEXED: &str = "__indexed";
/// Filter for a list or map that the template writes, which refuses too many levels.
pub(super) const NESTED: &str = "__nested";
/// Filter that looks at the time.
pub(super) const TICKED: &str = "__ticked";

/// Python's methods of maps, which hide what a map holds by their names.
const MAP_METHODS: [&str; 11] =
    ["items", "keys", "values", "get", "copy", "pop", "popitem", "update", "setdefault", "clear", "fromkeys"];

/// Most tags and operators in each other, chains of operators included; published templates have about twenty.
const MAX_NESTED: usize = 1000;

/// Replaces `generation` blocks, by which transformers marks the model's turns for training, by blocks that are scopes.
pub(super) fn without_generation_marks(source: &str, syntax: SyntaxConfig) -> String {
    let (mut out, mut copied, mut opened) = (String::with_capacity(source.len()), 0, false);
    for (token, span) in tokenize(source, false, syntax).map_while(Result::ok) {
        let block = match token {
            Token::Ident("generation") if opened => "with",
            Token::Ident("endgeneration") if opened => "endwith",
            _ => {
                opened = matches!(token, Token::BlockStart);
                continue;
            }
        };
        out.push_str(source.get(copied..span.start_offset as usize).unwrap_or_default());
        out.push_str(block);
        (copied, opened) = (span.end_offset as usize, false);
    }
    out.push_str(source.get(copied..).unwrap_or_default());
    out
}

/// The same template with the filters that spend.
///
/// # Errors
/// A sentence about what is not supported.
pub(super) fn rewritten<'a>(template: &Stmt<'a>) -> Result<Stmt<'a>, String> {
    let rewritten = statement(template, 0)?;
    check_jumps(&rewritten, false)?;
    Ok(rewritten)
}

/// Refuses a `break` or `continue` that leaves a block of `set`, `filter` or `with` (`generation` is one): minijinja jumps
/// without ending the block. `is_inside` is true in such a block of the innermost loop.
fn check_jumps(node: &Stmt<'_>, is_inside: bool) -> Result<(), String> {
    let check = |list: &[Stmt<'_>], is_inside| list.iter().try_for_each(|node| check_jumps(node, is_inside));
    match node {
        Stmt::Template(node) => check(&node.children, is_inside),
        Stmt::ForLoop(node) => {
            check(&node.body, false)?;
            check(&node.else_body, is_inside)
        }
        Stmt::IfCond(node) => {
            check(&node.true_body, is_inside)?;
            check(&node.false_body, is_inside)
        }
        Stmt::WithBlock(node) => check(&node.body, true),
        Stmt::SetBlock(node) => check(&node.body, true),
        Stmt::FilterBlock(node) => check(&node.body, true),
        Stmt::Macro(node) => check(&node.body, false),
        Stmt::CallBlock(node) => check(&node.macro_decl.body, false),
        Stmt::Break(_) | Stmt::Continue(_) if is_inside => {
            Err("a break or continue leaves a set, filter, with or generation block, which is not supported"
                .to_owned())
        }
        _ => Ok(()),
    }
}

/// The same statements in a scope of their own, as Jinja has it where minijinja has none.
fn scoped<'a>(body: Vec<Stmt<'a>>) -> Vec<Stmt<'a>> {
    if body.is_empty() {
        return body;
    }
    let block = WithBlock { assignments: Vec::new(), body };
    vec![Stmt::WithBlock(Spanned::new(block, Default::default()))]
}

fn deeper(depth: usize) -> Result<usize, String> {
    if depth < MAX_NESTED {
        return Ok(depth + 1);
    }
    Err(format!("more than {MAX_NESTED} of its tags or operators stand in each other"))
}

fn statements<'a>(list: &[Stmt<'a>], depth: usize) -> Result<Vec<Stmt<'a>>, String> {
    list.iter().map(|node| statement(node, depth)).collect()
}

/// Body that may run many times: it begins with an output of nothing, at which the time is looked at.
fn repeated<'a>(list: &[Stmt<'a>], depth: usize) -> Result<Vec<Stmt<'a>>, String> {
    let tick = Expr::Const(Spanned::new(Const { value: Value::from("") }, Default::default()));
    let tick = Stmt::EmitExpr(Spanned::new(EmitExpr { expr: tick }, Default::default()));
    let rest = list.iter().map(|node| statement(node, depth));
    std::iter::once(Ok(tick)).chain(rest).collect()
}

fn statement<'a>(node: &Stmt<'a>, depth: usize) -> Result<Stmt<'a>, String> {
    let depth = deeper(depth)?;
    let body = |list: &[Stmt<'a>]| statements(list, depth);
    Ok(match node {
        Stmt::Template(node) => {
            Stmt::Template(Spanned::new(Template { children: body(&node.children)? }, node.span()))
        }
        Stmt::EmitExpr(node) => {
            Stmt::EmitExpr(Spanned::new(EmitExpr { expr: expression(&node.expr, depth)? }, node.span()))
        }
        // As an expression, which is written by the formatter.
        Stmt::EmitRaw(node) => {
            let text = Expr::Const(Spanned::new(Const { value: Value::from(node.raw) }, node.span()));
            Stmt::EmitExpr(Spanned::new(EmitExpr { expr: text }, node.span()))
        }
        Stmt::ForLoop(node) => Stmt::ForLoop(Spanned::new(
            ForLoop {
                target: target(&node.target, depth)?,
                iter: filtered(COPIED, expression(&node.iter, depth)?),
                filter_expr: optional(&node.filter_expr, depth)?.map(|condition| filtered(TICKED, condition)),
                recursive: node.recursive,
                body: repeated(&node.body, depth)?,
                else_body: scoped(body(&node.else_body)?),
            },
            node.span(),
        )),
        Stmt::IfCond(node) => Stmt::IfCond(Spanned::new(
            IfCond {
                expr: expression(&node.expr, depth)?,
                true_body: body(&node.true_body)?,
                false_body: body(&node.false_body)?,
            },
            node.span(),
        )),
        Stmt::WithBlock(node) => {
            let assigned =
                |(name, value): &(Expr<'a>, Expr<'a>)| Ok((target(name, depth)?, expression(value, depth)?));
            let assignments = node.assignments.iter().map(assigned).collect::<Result<_, String>>()?;
            Stmt::WithBlock(Spanned::new(WithBlock { assignments, body: body(&node.body)? }, node.span()))
        }
        Stmt::Set(node) => {
            let value = expression(&node.expr, depth)?;
            let expr = if has_attribute(&node.target) { filtered(KEPT, value) } else { value };
            Stmt::Set(Spanned::new(Set { target: target(&node.target, depth)?, expr }, node.span()))
        }
        Stmt::SetBlock(node) => {
            let filter = optional(&node.filter, depth)?;
            let keep = |filter| if has_attribute(&node.target) { filtered(KEPT, filter) } else { filter };
            let (target, filter) = (target(&node.target, depth)?, filter.map(keep));
            let body = scoped(body(&node.body)?);
            Stmt::SetBlock(Spanned::new(SetBlock { target, filter, body }, node.span()))
        }
        Stmt::FilterBlock(node) => {
            let filter = expression(&node.filter, depth)?;
            let body = scoped(body(&node.body)?);
            Stmt::FilterBlock(Spanned::new(FilterBlock { filter, body }, node.span()))
        }
        Stmt::Macro(node) => Stmt::Macro(macro_of(node, depth)?),
        Stmt::CallBlock(node) => {
            let (call, macro_decl) = (call_of(&node.call, depth)?, macro_of(&node.macro_decl, depth)?);
            Stmt::CallBlock(Spanned::new(CallBlock { call, macro_decl }, node.span()))
        }
        Stmt::Continue(node) => {
            Stmt::Continue(Spanned::new(minijinja::machinery::ast::Continue, node.span()))
        }
        Stmt::Break(node) => Stmt::Break(Spanned::new(minijinja::machinery::ast::Break, node.span())),
        Stmt::Do(node) => Stmt::Do(Spanned::new(Do { call: call_of(&node.call, depth)? }, node.span())),
        // Escaping, and other templates, where another crate has turned minijinja's feature for them on.
        _ => return Err("it has a block that chat templates have no need of".to_owned()),
    })
}

fn macro_of<'a>(node: &Spanned<Macro<'a>>, depth: usize) -> Result<Spanned<Macro<'a>>, String> {
    let (args, defaults) = (expressions(&node.args, depth)?, expressions(&node.defaults, depth)?);
    let body = repeated(&node.body, depth)?;
    Ok(Spanned::new(Macro { name: node.name, args, defaults, body }, node.span()))
}

fn call_of<'a>(node: &Spanned<Call<'a>>, depth: usize) -> Result<Spanned<Call<'a>>, String> {
    // `loop.changed` keeps its arguments.
    let keeps = matches!(&node.expr, Expr::GetAttr(method) if method.name == "changed");
    let cycles = matches!(&node.expr, Expr::GetAttr(method) if method.name == "cycle");
    if cycles && !node.args.iter().any(|argument| matches!(argument, CallArg::Pos(_))) {
        // minijinja divides by their number.
        return Err("it calls `cycle` without arguments".to_owned());
    }
    let args = arguments(&node.args, keeps, depth)?;
    let expr = match &node.expr {
        // A method that is called, whatever its name is.
        Expr::GetAttr(method) => {
            let expr = expression(&method.expr, deeper(depth)?)?;
            Expr::GetAttr(Spanned::new(GetAttr { expr, name: method.name }, method.span()))
        }
        other => expression(other, depth)?,
    };
    Ok(Spanned::new(Call { expr, args }, node.span()))
}

fn arguments<'a>(list: &[CallArg<'a>], keeps: bool, depth: usize) -> Result<Vec<CallArg<'a>>, String> {
    let value = |node: &Expr<'a>| {
        let value = expression(node, depth)?;
        Ok::<_, String>(if keeps { filtered(KEPT, value) } else { value })
    };
    let argument = |argument: &CallArg<'a>| {
        Ok(match argument {
            CallArg::Pos(node) => CallArg::Pos(value(node)?),
            CallArg::Kwarg(name, node) => CallArg::Kwarg(name, value(node)?),
            CallArg::PosSplat(node) => CallArg::PosSplat(filtered(COPIED, value(node)?)),
            CallArg::KwargSplat(node) => CallArg::KwargSplat(filtered(COPIED, value(node)?)),
        })
    };
    list.iter().map(argument).collect()
}

fn has_attribute(target: &Expr) -> bool {
    match target {
        Expr::GetAttr(_) => true,
        Expr::List(list) => list.items.iter().any(has_attribute),
        _ => false,
    }
}

/// Names that are assigned to, which are no values.
fn target<'a>(node: &Expr<'a>, depth: usize) -> Result<Expr<'a>, String> {
    let depth = deeper(depth)?;
    let targets = |list: &[Expr<'a>]| list.iter().map(|node| target(node, depth)).collect::<Result<_, _>>();
    Ok(match node {
        Expr::List(node) => Expr::List(Spanned::new(List { items: targets(&node.items)? }, node.span())),
        Expr::Tuple(node) => Expr::Tuple(Spanned::new(Tuple { items: targets(&node.items)? }, node.span())),
        Expr::GetAttr(node) => {
            let expr = expression(&node.expr, depth)?;
            Expr::GetAttr(Spanned::new(GetAttr { expr, name: node.name }, node.span()))
        }
        node => expression(node, depth)?,
    })
}

fn optional<'a>(node: &Option<Expr<'a>>, depth: usize) -> Result<Option<Expr<'a>>, String> {
    node.as_ref().map(|node| expression(node, depth)).transpose()
}

fn expressions<'a>(list: &[Expr<'a>], depth: usize) -> Result<Vec<Expr<'a>>, String> {
    list.iter().map(|node| expression(node, depth)).collect()
}

/// Passes a list or map that the template writes through [`NESTED`], unless it holds nothing but constants.
fn nested<'a>(list: Expr<'a>) -> Expr<'a> {
    let constant = |items: &[Expr]| items.iter().all(|item| matches!(item, Expr::Const(_)));
    let is_flat = match &list {
        Expr::List(node) => constant(&node.items),
        Expr::Tuple(node) => constant(&node.items),
        Expr::Map(node) => constant(&node.values),
        _ => true,
    };
    if is_flat { list } else { filtered(NESTED, list) }
}

/// Passes a value through a filter, unless it is written in the template and so no larger than that.
fn filtered<'a>(name: &'static str, value: Expr<'a>) -> Expr<'a> {
    if matches!(value, Expr::Const(_)) {
        return value;
    }
    let span = value.span();
    Expr::Filter(Spanned::new(Filter { name, expr: Some(value), args: Vec::new() }, span))
}

fn expression<'a>(node: &Expr<'a>, depth: usize) -> Result<Expr<'a>, String> {
    let depth = deeper(depth)?;
    let span = node.span();
    let inner = |node: &Expr<'a>| expression(node, depth);
    Ok(match node {
        Expr::Var(node) => Expr::Var(Spanned::new(Var { id: node.id }, span)),
        Expr::Const(node) => Expr::Const(Spanned::new(Const { value: node.value.clone() }, span)),
        Expr::Slice(node) => {
            let none = || Expr::Const(Spanned::new(Const { value: Value::from(()) }, span));
            let place = |place| Ok::<_, String>(CallArg::Pos(optional(place, depth)?.unwrap_or_else(none)));
            let args = vec![place(&node.start)?, place(&node.stop)?, place(&node.step)?];
            Expr::Filter(Spanned::new(Filter { name: PART, expr: Some(inner(&node.expr)?), args }, span))
        }
        Expr::UnaryOp(node) => {
            let negates = matches!(node.op, UnaryOpKind::Neg);
            let op = if negates { UnaryOpKind::Neg } else { UnaryOpKind::Not };
            Expr::UnaryOp(Spanned::new(UnaryOp { op, expr: inner(&node.expr)? }, span))
        }
        Expr::BinOp(node) => operation(node.op, inner(&node.left)?, inner(&node.right)?, span),
        Expr::Compare(node) => {
            let compared =
                |of: &CompareOp<'a>| Ok(CompareOp { op: of.op, expr: filtered(WHOLE, inner(&of.expr)?) });
            let ops = node.ops.iter().map(compared).collect::<Result<_, String>>()?;
            Expr::Compare(Spanned::new(Compare { expr: filtered(WHOLE, inner(&node.expr)?), ops }, span))
        }
        Expr::IfExpr(node) => Expr::IfExpr(Spanned::new(
            IfExpr {
                test_expr: inner(&node.test_expr)?,
                true_expr: inner(&node.true_expr)?,
                false_expr: optional(&node.false_expr, depth)?,
            },
            span,
        )),
        Expr::Filter(node) => Expr::Filter(Spanned::new(
            Filter {
                name: node.name,
                expr: optional(&node.expr, depth)?,
                args: arguments(&node.args, false, depth)?,
            },
            span,
        )),
        Expr::Test(node) => Expr::Test(Spanned::new(
            Test { name: node.name, expr: inner(&node.expr)?, args: arguments(&node.args, false, depth)? },
            span,
        )),
        Expr::GetAttr(node) if MAP_METHODS.contains(&node.name) => {
            let name = Expr::Const(Spanned::new(Const { value: Value::from(node.name) }, span));
            let (expr, args) = (Some(inner(&node.expr)?), vec![CallArg::Pos(name)]);
            Expr::Filter(Spanned::new(Filter { name: METHOD, expr, args }, span))
        }
        Expr::GetAttr(node) => {
            Expr::GetAttr(Spanned::new(GetAttr { expr: inner(&node.expr)?, name: node.name }, span))
        }
        Expr::GetItem(node) => {
            let subscript_expr = filtered(WHOLE, inner(&node.subscript_expr)?);
            let expr = filtered(INDEXED, inner(&node.expr)?);
            Expr::GetItem(Spanned::new(GetItem { expr, subscript_expr }, span))
        }
        Expr::Call(node) => Expr::Call(call_of(node, depth)?),
        Expr::List(node) => {
            nested(Expr::List(Spanned::new(List { items: expressions(&node.items, depth)? }, span)))
        }
        Expr::Tuple(node) => {
            nested(Expr::Tuple(Spanned::new(Tuple { items: expressions(&node.items, depth)? }, span)))
        }
        Expr::Map(node) => {
            let keys = expressions(&node.keys, depth)?.into_iter().map(|key| filtered(WHOLE, key)).collect();
            nested(Expr::Map(Spanned::new(Map { keys, values: expressions(&node.values, depth)? }, span)))
        }
    })
}

fn operation<'a>(
    op: BinOpKind,
    left: Expr<'a>,
    right: Expr<'a>,
    span: minijinja::machinery::Span,
) -> Expr<'a> {
    let call = |name, left, right| {
        Expr::Filter(Spanned::new(Filter { name, expr: Some(left), args: vec![CallArg::Pos(right)] }, span))
    };
    let ordered = |operator: &'static str, left, right| {
        let operator = Expr::Const(Spanned::new(Const { value: Value::from(operator) }, span));
        let args = vec![CallArg::Pos(right), CallArg::Pos(operator)];
        Expr::Filter(Spanned::new(Filter { name: ORDERED, expr: Some(left), args }, span))
    };
    let operand = match op {
        BinOpKind::Mul => return call(TIMES, left, right),
        BinOpKind::Rem => return call(REST, left, right),
        BinOpKind::Lt => return ordered("<", left, right),
        BinOpKind::Lte => return ordered("<=", left, right),
        BinOpKind::Gt => return ordered(">", left, right),
        BinOpKind::Gte => return ordered(">=", left, right),
        BinOpKind::Eq => return call(EQUAL, left, right),
        BinOpKind::Ne => {
            let expr = call(EQUAL, left, right);
            return Expr::UnaryOp(Spanned::new(UnaryOp { op: UnaryOpKind::Not, expr }, span));
        }
        BinOpKind::Add => COPIED,
        BinOpKind::Concat => WRITTEN,
        BinOpKind::In => WHOLE,
        // Of numbers, or of nothing but the truth of their operands.
        BinOpKind::Sub | BinOpKind::Div | BinOpKind::FloorDiv | BinOpKind::Pow => {
            return Expr::BinOp(Spanned::new(BinOp { op, left, right }, span));
        }
        BinOpKind::ScAnd | BinOpKind::ScOr => {
            return Expr::BinOp(Spanned::new(BinOp { op, left, right }, span));
        }
    };
    let (left, right) = (filtered(operand, left), filtered(operand, right));
    Expr::BinOp(Spanned::new(BinOp { op, left, right }, span))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn marked(source: &str) -> String {
        without_generation_marks(source, SyntaxConfig::default())
    }

    #[test]
    fn generation_marks_become_blocks_that_are_scopes() {
        assert_eq!(
            marked("{%- generation -%}a{% endgeneration %}{{ b }}{% if c %}{% endif %}"),
            "{%- with -%}a{% endwith %}{{ b }}{% if c %}{% endif %}"
        );
        assert_eq!(marked("{%-generation%}a{%+ endgeneration -%}"), "{%-with%}a{%+ endwith -%}");
        let others = "{{ generation }}{# {% generation %} #}{% raw %}{% generation %}{% endraw %}{% set generation = 1 %}";
        assert_eq!(marked(others), others);
    }

    #[test]
    fn marks_are_taken_out_of_any_text() {
        for text in ["{%}", "{%", "{%%}", "a{%}b", "{%}%}", "{{%", "{% broken", "\u{1F408}{%-}"] {
            assert_eq!(marked(text), text);
        }
    }
}
