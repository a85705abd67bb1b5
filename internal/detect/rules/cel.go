package rules

import (
	"bytes"
	"reflect"
	"regexp"

	"cel.dev/cel-go/cel"
	"cel.dev/cel-go/common/types"
	"cel.dev/cel-go/common/types/ref"
	"cel.dev/cel-go/common/types/traits"
	"cel.dev/cel-go/ext"
)

// costLimit bounds one evaluation, in CEL's units (about one a step): rules
// are the operator's, their input is not.
const costLimit = 200_000

var (
	payloadType = cel.ObjectType("rules.Payload")
	messageType = cel.ObjectType("rules.Message")
)

// environments declares, for every kind, its one variable and the functions.
func environments() (map[Kind]*cel.Env, error) {
	envs := map[Kind]*cel.Env{}
	for kind, typ := range map[Kind]reflect.Type{
		KindPayload: reflect.TypeFor[*Payload](),
		KindExec:    reflect.TypeFor[*Exec](),
		KindConnect: reflect.TypeFor[*Connect](),
	} {
		opts := []cel.EnvOption{
			ext.NativeTypes(typ, reflect.TypeFor[*Message](), ext.ParseStructTags(true)),
			ext.Encoders(),
			cel.Variable(string(kind), cel.ObjectType("rules."+typ.Elem().Name())),
			quoteFunction(),
		}
		if kind == KindPayload {
			opts = append(opts, payloadFunctions()...)
		}
		env, err := cel.NewEnv(opts...)
		if err != nil {
			return nil, err
		}
		envs[kind] = env
	}
	return envs, nil
}

// payloadFunctions are what conditions on payloads are made of; doc comments
// of Message say what they mean. None of them can fail on a stranger's bytes.
func payloadFunctions() []cel.EnvOption {
	patterns := &regexes{compiled: map[string]*regexp.Regexp{}}
	str, list := cel.StringType, cel.ListType(cel.StringType)
	return []cel.EnvOption{
		cel.Function("messages", cel.MemberOverload("payload_messages",
			[]*cel.Type{payloadType}, cel.ListType(messageType), cel.UnaryBinding(messages))),
		cel.Function("contains", cel.MemberOverload("payload_contains",
			[]*cel.Type{payloadType, str}, cel.BoolType, cel.BinaryBinding(contains))),
		cel.Function("has_field", cel.MemberOverload("message_has_field",
			[]*cel.Type{messageType, str}, cel.BoolType, cel.BinaryBinding(hasField))),
		cel.Function("text", cel.MemberOverload("message_text",
			[]*cel.Type{messageType, str}, str, cel.BinaryBinding(text))),
		cel.Function("any", cel.MemberOverload("message_any",
			[]*cel.Type{messageType, str, list}, cel.BoolType, cel.FunctionBinding(anyOf))),
		cel.Function("like", cel.MemberOverload("message_like",
			[]*cel.Type{messageType, str, str}, cel.BoolType, cel.FunctionBinding(patterns.like))),
		cel.Function("raw", cel.MemberOverload("message_raw",
			[]*cel.Type{messageType}, cel.BytesType, cel.UnaryBinding(raw))),
	}
}

// quoteFunction is quote(bytes, n): at most n bytes, printable, for details.
func quoteFunction() cel.EnvOption {
	return cel.Function("quote", cel.Overload("quote_bytes_int",
		[]*cel.Type{cel.BytesType, cel.IntType}, cel.StringType,
		cel.BinaryBinding(func(b, n ref.Val) ref.Val {
			return types.String(quote([]byte(b.(types.Bytes)), int(n.(types.Int))))
		})))
}

func messages(v ref.Val) ref.Val {
	p, ok := v.Value().(*Payload)
	if !ok {
		return types.MaybeNoSuchOverloadErr(v)
	}
	vals := make([]ref.Val, len(p.Messages()))
	for i, m := range p.Messages() {
		vals[i] = messageVal{m}
	}
	return types.NewRefValList(types.DefaultTypeAdapter, vals)
}

func contains(v, what ref.Val) ref.Val {
	p, ok := v.Value().(*Payload)
	if !ok {
		return types.MaybeNoSuchOverloadErr(v)
	}
	return types.Bool(bytes.Contains(p.Data, []byte(what.(types.String))))
}

func hasField(v, path ref.Val) ref.Val {
	return types.Bool(v.(messageVal).m.has(string(path.(types.String))))
}

func text(v, path ref.Val) ref.Val {
	return types.String(v.(messageVal).m.text(string(path.(types.String))))
}

func raw(v ref.Val) ref.Val { return types.Bytes(v.(messageVal).m.raw) }

// anyOf is message.any(path, list).
func anyOf(args ...ref.Val) ref.Val {
	list := args[2].(traits.Lister)
	return types.Bool(args[0].(messageVal).m.any(string(args[1].(types.String)), func(s string) bool {
		return list.Contains(types.String(s)) == types.True
	}))
}

// messageVal carries a Message through CEL without reflection.
type messageVal struct{ m *Message }

func (v messageVal) ConvertToNative(t reflect.Type) (any, error) {
	if t == reflect.TypeFor[*Message]() {
		return v.m, nil
	}
	return nil, errNoConversion
}

func (v messageVal) ConvertToType(t ref.Type) ref.Val {
	if t.TypeName() == messageType.TypeName() {
		return v
	}
	return types.NewErr("a message is not a %s", t.TypeName())
}

func (v messageVal) Equal(other ref.Val) ref.Val {
	o, ok := other.(messageVal)
	return types.Bool(ok && o.m == v.m)
}

func (v messageVal) Type() ref.Type { return messageType }
func (v messageVal) Value() any     { return v.m }
