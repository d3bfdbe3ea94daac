#!/usr/bin/env escript
%% -*- erlang -*-
%%! -noinput
%% A bridge in Erlang, for OTP 24 or later.
%%
%%     quaybridge worker --service work --bridge "escript examples/erlang/bridge.escript"
%%     quaybridge conformance -- escript examples/erlang/bridge.escript
%%
%% Put your own commands into `command`; the rest of this file is the protocol (docs/wire.md), of which {packet, 4}
%% does the frames. Each request runs in a process of its own; the main process owns the port.
-mode(compile).

-define(CONCURRENCY, 64).
-define(FRAME_LIMIT, 16 * 1024 * 1024).
-define(COMMANDS, [echo, sleep, count, log]).

%% What `command` returns is the result, what it fails with the failure. `Say` sends an event before that.
command(<<"echo">>, Args, _Say) ->
    Args;
command(<<"sleep">>, #{<<"seconds">> := Seconds}, _Say) when is_number(Seconds) ->
    timer:sleep(round(Seconds * 1000)),
    Seconds;
command(<<"count">>, #{<<"to">> := To}, Say) when is_integer(To) ->
    [Say(#{event => chunk, seq => Seq, data => Seq}) || Seq <- lists:seq(0, To - 1)],
    To;
command(<<"log">>, #{<<"bytes">> := Bytes}, _Say) when is_integer(Bytes) ->
    Line = [lists:duplicate(1023, $x), $\n],
    [io:put_chars(standard_error, Line) || _ <- lists:seq(1, Bytes, 1024)],
    Bytes;
command(Name, Args, _Say) ->
    case [Known || Known <- ?COMMANDS, atom_to_binary(Known) =:= Name] of
        [] -> error({unknown_command, Name});
        _ -> error({bad_arguments, Args})
    end.

main([]) ->
    load_json(),
    %% Frames own standard output: whatever is printed or logged goes to standard error.
    logger:remove_handler(default),
    logger:add_handler(default, logger_std_h, #{config => #{type => standard_error}}),
    group_leader(whereis(standard_error), self()),
    Port = open_port({fd, 0, 1}, [binary, {packet, 4}, eof]),
    loop(#{port => Port, running => #{}, cancelled => [], ending => false}).

load_json() ->
    Source = filename:join(filename:dirname(escript:script_name()), "json.erl"),
    {ok, Module, Code} = compile:file(Source, [binary]),
    {module, Module} = code:load_binary(Module, Source, Code).

%% `running`: the process of each id, and the id of each process's monitor. `cancelled`: ids whose cancel came first.
loop(#{ending := true, running := Running}) when map_size(Running) =:= 0 ->
    halt(0);
loop(#{port := Port, running := Running} = State) ->
    receive
        {Port, {data, Payload}} ->
            loop(read(Payload, State));
        {Port, eof} ->
            halt(0); % whoever asked is gone
        {say, Message} ->
            send(Port, Message),
            loop(State);
        {'DOWN', Monitor, process, _, Reason} ->
            case maps:take(Monitor, Running) of
                {{Id, _}, Others} ->
                    send(Port, reply(Id, Reason)),
                    loop(State#{running := Others});
                error ->
                    loop(State)
            end
    end.

read(Payload, #{port := Port} = State) ->
    case json:decode(Payload) of
        {ok, #{<<"id">> := Id, <<"command">> := Command} = Request} when is_integer(Id), Id >= 0, is_binary(Command) ->
            case maps:get(<<"args">>, Request, null) of
                null -> serve(Id, Command, #{}, State);
                Args when is_map(Args) -> serve(Id, Command, Args, State);
                _ -> send(Port, failure(Id, <<"args must be an object">>)), State
            end;
        _ ->
            send(Port, failure(null, <<"cannot read the frame: it is no request">>)),
            State
    end.

serve(Id, <<"ping">>, _Args, #{port := Port} = State) ->
    Claims = #{protocol => 1, concurrency => ?CONCURRENCY, cancel => true, stream => true, shutdown => true},
    send(Port, success(Id, #{status => ok, capabilities => Claims#{commands => ?COMMANDS}})),
    State;
serve(Id, <<"shutdown">>, _Args, #{port := Port} = State) ->
    send(Port, success(Id, #{status => ended})),
    State#{ending := true};
serve(_, <<"cancel">>, Args, #{port := Port, running := Running, cancelled := Cancelled} = State) ->
    Id = maps:get(<<"id">>, Args, null),
    case [{Monitor, Process} || {Monitor, {Known, Process}} <- maps:to_list(Running), Known =:= Id] of
        [{Monitor, Process}] ->
            demonitor(Monitor, [flush]),
            exit(Process, kill),
            send(Port, failure(Id, <<"cancelled">>)), % the one reply of what was cancelled; a cancel has none
            State#{running := maps:remove(Monitor, Running)};
        [] ->
            State#{cancelled := lists:sublist([Id | Cancelled], 1024)}
    end;
serve(Id, Command, Args, #{port := Port, running := Running, cancelled := Cancelled} = State) ->
    case lists:member(Id, Cancelled) of
        true ->
            send(Port, failure(Id, <<"cancelled">>)),
            State#{cancelled := lists:delete(Id, Cancelled)};
        false ->
            Main = self(),
            Say = fun(Event) -> Main ! {say, Event#{id => Id}} end,
            {Process, Monitor} = spawn_monitor(fun() -> run(Command, Args, Say) end),
            State#{running := Running#{Monitor => {Id, Process}}}
    end.

run(Command, Args, Say) ->
    try command(Command, Args, Say) of
        Result -> exit({done, Result})
    catch
        _:Reason:Stack -> exit({failed, Reason, Stack})
    end.

reply(Id, {done, Result}) ->
    try
        Reply = success(Id, Result),
        iolist_size(json:encode(Reply)) =< ?FRAME_LIMIT orelse error(too_large),
        Reply
    catch
        error:Reason -> failure(Id, text("the result cannot be sent: ~p", [Reason]))
    end;
reply(Id, {failed, Reason, Stack}) ->
    Error = text("~0tp", [Reason]),
    Info = #{type => <<"error">>, message => Error, traceback => text("~tp", [Stack])},
    (failure(Id, Error))#{error_info => Info};
reply(Id, Reason) ->
    failure(Id, text("its process died: ~0tp", [Reason])).

text(Format, Values) ->
    unicode:characters_to_binary(io_lib:format(Format, Values)).

success(Id, Result) ->
    #{id => Id, success => true, result => Result}.

failure(Id, Error) ->
    #{id => Id, success => false, error => Error}.

send(Port, Message) ->
    Now = calendar:system_time_to_rfc3339(erlang:system_time(millisecond), [{unit, millisecond}, {offset, "Z"}]),
    port_command(Port, json:encode(Message#{timestamp => list_to_binary(Now)})).
