%% JSON for the escripts beside this file: OTP has a module of its own only from 27 on.
%%
%% Objects are maps with binary keys, text is binaries of UTF-8, null is the atom `null`.
-module(json).
-export([encode/1, decode/1]).

-define(MAX_DEPTH, 128).

%% The JSON of a term, as an iolist. Fails with badarg for a term that has none.
encode(null) -> <<"null">>;
encode(true) -> <<"true">>;
encode(false) -> <<"false">>;
encode(Number) when is_integer(Number) -> integer_to_binary(Number);
encode(Number) when is_float(Number) -> float_to_binary(Number, [short]);
encode(Text) when is_binary(Text) -> [$", escape(Text, <<>>), $"];
encode(Name) when is_atom(Name) -> encode(atom_to_binary(Name));
encode(Items) when is_list(Items) -> [$[, lists:join($,, [encode(Item) || Item <- Items]), $]];
encode(Object) when is_map(Object) ->
    Members = [[encode(to_text(Key)), $:, encode(Value)] || {Key, Value} <- maps:to_list(Object)],
    [${, lists:join($,, Members), $}];
encode(_) -> error(badarg).

to_text(Key) when is_atom(Key) -> atom_to_binary(Key);
to_text(Key) when is_binary(Key) -> Key.

escape(<<$", Rest/binary>>, Done) -> escape(Rest, <<Done/binary, "\\\"">>);
escape(<<$\\, Rest/binary>>, Done) -> escape(Rest, <<Done/binary, "\\\\">>);
escape(<<C, Rest/binary>>, Done) when C < 32 ->
    escape(Rest, <<Done/binary, (iolist_to_binary(io_lib:format("\\u~4.16.0b", [C])))/binary>>);
escape(<<C/utf8, Rest/binary>>, Done) -> escape(Rest, <<Done/binary, C/utf8>>);
escape(<<>>, Done) -> Done;
escape(_, _) -> error(badarg).

%% {ok, Term}, or error for bytes that are no JSON.
decode(Bytes) ->
    try value(skip(Bytes), 0) of
        {Value, Rest} ->
            case skip(Rest) of
                <<>> -> {ok, Value};
                _ -> error
            end
    catch
        error:_ -> error
    end.

skip(<<C, Rest/binary>>) when C =:= $\s; C =:= $\t; C =:= $\n; C =:= $\r -> skip(Rest);
skip(Rest) -> Rest.

value(<<"null", Rest/binary>>, _) -> {null, Rest};
value(<<"true", Rest/binary>>, _) -> {true, Rest};
value(<<"false", Rest/binary>>, _) -> {false, Rest};
value(<<$", Rest/binary>>, _) -> text(Rest, <<>>);
value(<<$[, Rest/binary>>, Depth) when Depth < ?MAX_DEPTH ->
    case skip(Rest) of
        <<$], After/binary>> -> {[], After};
        First -> array(First, [], Depth + 1)
    end;
value(<<${, Rest/binary>>, Depth) when Depth < ?MAX_DEPTH ->
    case skip(Rest) of
        <<$}, After/binary>> -> {#{}, After};
        First -> object(First, #{}, Depth + 1)
    end;
value(Rest, _) -> number(Rest).

array(Bytes, Items, Depth) ->
    {Item, Rest} = value(Bytes, Depth),
    case skip(Rest) of
        <<$,, More/binary>> -> array(skip(More), [Item | Items], Depth);
        <<$], After/binary>> -> {lists:reverse([Item | Items]), After}
    end.

object(<<$", Bytes/binary>>, Members, Depth) ->
    {Key, Rest} = text(Bytes, <<>>),
    <<$:, Right/binary>> = skip(Rest),
    {Value, After} = value(skip(Right), Depth),
    Object = Members#{Key => Value},
    case skip(After) of
        <<$,, More/binary>> -> object(skip(More), Object, Depth);
        <<$}, End/binary>> -> {Object, End}
    end.

text(<<$", Rest/binary>>, Done) -> {Done, Rest};
text(<<"\\u", Hex:4/binary, Rest/binary>>, Done) -> unit(binary_to_integer(Hex, 16), Rest, Done);
text(<<$\\, C, Rest/binary>>, Done) ->
    Escapes = #{$" => $", $\\ => $\\, $/ => $/, $b => $\b, $f => $\f, $n => $\n, $r => $\r, $t => $\t},
    text(Rest, <<Done/binary, (maps:get(C, Escapes))>>);
text(<<C/utf8, Rest/binary>>, Done) when C >= 32 -> text(Rest, <<Done/binary, C/utf8>>).

%% A character past U+FFFF is escaped as two units, each of which alone is none.
unit(High, <<"\\u", Hex:4/binary, Rest/binary>>, Done) when High >= 16#D800, High =< 16#DBFF ->
    Low = binary_to_integer(Hex, 16),
    true = Low >= 16#DC00 andalso Low =< 16#DFFF,
    text(Rest, <<Done/binary, (16#10000 + (High - 16#D800) * 16#400 + Low - 16#DC00)/utf8>>);
unit(Unit, Rest, Done) -> text(Rest, <<Done/binary, Unit/utf8>>).

number(Bytes) ->
    {match, [{0, Size} | Parts]} =
        re:run(Bytes, <<"^(-?(?:0|[1-9][0-9]*))(\\.[0-9]+)?([eE][+-]?[0-9]+)?">>, []),
    <<Whole:Size/binary, Rest/binary>> = Bytes,
    case Parts of
        [_] -> {binary_to_integer(Whole), Rest};
        [{0, Digits}, {-1, 0}, _] ->
            <<Integer:Digits/binary, Exponent/binary>> = Whole,
            {binary_to_float(<<Integer/binary, ".0", Exponent/binary>>), Rest}; % Erlang wants the fraction
        _ -> {binary_to_float(Whole), Rest}
    end.
