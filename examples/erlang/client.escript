#!/usr/bin/env escript
%% -*- erlang -*-
%%! -noinput
%% A client in Erlang: opens a bridge as a port, as DSPex does, and talks to it.
%%
%%     escript examples/erlang/client.escript python -m examples.echo
%%
%% The bridge must have a command `echo`. Prints what is said, and ends with 0 if all of it was as expected.
-mode(compile).

main([Program | Arguments]) ->
    Source = filename:join(filename:dirname(escript:script_name()), "json.erl"),
    {ok, Module, Code} = compile:file(Source, [binary]),
    {module, Module} = code:load_binary(Module, Source, Code),
    io:setopts(standard_io, [{encoding, unicode}]),
    case os:find_executable(case lists:member($/, Program) of true -> filename:absname(Program); false -> Program end) of
        false ->
            io:format(standard_error, "~ts is not found on PATH~n", [Program]),
            halt(1);
        Path ->
            Port = open_port({spawn_executable, Path}, [binary, exit_status, {packet, 4}, {args, Arguments}]),
            talk(Port)
    end;
main([]) ->
    io:format(standard_error, "usage: escript client.escript PROGRAM ARGUMENTS…~n", []),
    halt(2).

talk(Port) ->
    #{<<"success">> := true, <<"result">> := #{<<"status">> := <<"ok">>}} =
        ask(Port, 0, <<"ping">>, #{initialization => true, worker_id => <<"worker_1">>}),
    Values = #{
        <<"question">> => <<"What is déjà vu? "/utf8, 16#1F600/utf8>>,
        <<"numbers">> => [1, -2.5, 9007199254740991, 1.0e300],
        <<"nothing">> => null,
        <<"nested">> => #{<<"list">> => [[], #{}, [true, false]]}
    },
    #{<<"success">> := true, <<"result">> := Values} = ask(Port, 1, <<"echo">>, Values),
    #{<<"success">> := false, <<"error">> := Error} = ask(Port, 2, <<"no_such_command">>, #{}),
    true = is_binary(Error),
    Large = #{<<"text">> => binary:copy(<<"é"/utf8>>, 500000)},
    #{<<"success">> := true, <<"result">> := Large} = ask(Port, 9007199254740991, <<"echo">>, Large),
    #{<<"success">> := true} = ask(Port, 3, <<"shutdown">>, #{}),
    receive
        {Port, {exit_status, 0}} -> io:format("the bridge ended with 0~n")
    after 10000 -> error(still_running)
    end,
    halt(0).

%% One request, and its reply.
ask(Port, Id, Command, Args) ->
    Timestamp = list_to_binary(calendar:system_time_to_rfc3339(erlang:system_time(second))),
    Request = #{id => Id, command => Command, args => Args, timestamp => Timestamp},
    true = port_command(Port, json:encode(Request)),
    receive
        {Port, {data, Payload}} ->
            {ok, #{<<"id">> := Id} = Reply} = json:decode(Payload),
            io:format("~ts (~b): ~ts~n", [Command, Id, shown(Payload)]),
            Reply;
        {Port, {exit_status, Status}} ->
            error({the_bridge_ended, Status})
    after 10000 -> error({no_reply_to, Command})
    end.

shown(Payload) when byte_size(Payload) =< 2000 -> Payload;
shown(Payload) -> io_lib:format("~b bytes", [byte_size(Payload)]).
