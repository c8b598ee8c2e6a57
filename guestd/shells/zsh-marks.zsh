# Marks for zsh: where a prompt is (OSC 133 A, B), which command line begins (C) and how it has ended (D), and the directory
# (OSC 7).
#
# zsh calls functions before a prompt and before a command. The first before a prompt tells the end, the last the prompt;
# PS1 ends with the prompt's end. Others write to the lists and to PS1 at any time, so at each prompt what is missing is put
# back. Nothing is forked. What a function does stands in a group without output, by which it is silent under set -x and for
# others' traps; the marks go to the terminal itself, wherever the session's own output goes.

typeset -gi __guestd_open=0
# The directory as it was told last: itself, and encoded.
typeset -g __guestd_directory= __guestd_place=
typeset -g __guestd_PS1_end=$'%{\e]133;B\a%}'

# Percent-encodes $1 into REPLY, but for the harmless and, if $2 is given, slashes.
__guestd_encode() {
    emulate -L zsh -o extended_glob -o no_multibyte -o no_xtrace
    local MATCH
    local -i MBEGIN MEND
    if (( $# > 1 )); then
        REPLY=${1//(#m)[^a-zA-Z0-9._~+,:@=\/-]/%${(l:2::0:)$(([##16]#MATCH))}}
    else
        REPLY=${1//(#m)[^a-zA-Z0-9._~+,:@=-]/%${(l:2::0:)$(([##16]#MATCH))}}
    fi
}

# From both kinds, since either list may be replaced as a whole. zsh goes through a copy of it.
__guestd_arrange() {
    if [[ $precmd_functions[1] != __guestd_ended || $precmd_functions[-1] != __guestd_prompt ]]; then
        precmd_functions=(__guestd_ended ${precmd_functions:#__guestd_*} __guestd_prompt)
    fi
    if [[ $preexec_functions[-1] != __guestd_begun ]]; then
        preexec_functions=(${preexec_functions:#__guestd_*} __guestd_begun)
    fi
}

# Before a prompt, the first: the end of what ran.
__guestd_ended() {
    {
        local -i code=$?
        emulate -L zsh -o no_xtrace -o no_err_exit -o local_traps
        trap - DEBUG ZERR
        if (( __guestd_open )); then
            __guestd_open=0
            builtin print -rn -- $'\e]133;D;'$code$'\a' >/dev/tty
        fi
        __guestd_arrange
    } >/dev/null 2>&1
}

# Before a prompt, the last, when all others have had their say about PS1.
__guestd_prompt() {
    {
        emulate -L zsh -o no_xtrace -o no_err_exit -o local_traps
        trap - DEBUG ZERR
        local REPLY
        if [[ $PWD != $__guestd_directory ]]; then
            __guestd_directory=$PWD
            __guestd_encode $HOST
            __guestd_place=$REPLY
            __guestd_encode $PWD /
            __guestd_place+=$REPLY
        fi
        builtin print -rn -- $'\e]7;file://'$__guestd_place$'\a\e]133;A\a' >/dev/tty
        # A percent sign at the end would take the first of ours for its own.
        if [[ -n $PS1 && $PS1 != *($__guestd_PS1_end|%) && ${(t)PS1} != *readonly* && -o prompt_percent ]]; then
            PS1=${PS1//$__guestd_PS1_end/}$__guestd_PS1_end
        fi
    } >/dev/null 2>&1
}

# Before a command, the last.
__guestd_begun() {
    {
        local -i code=$?
        emulate -L zsh -o no_xtrace -o no_err_exit -o local_traps -o no_multibyte
        trap - DEBUG ZERR
        # The line as it was typed; without a history only as it was understood.
        local line=${1:-${3-}} REPLY
        __guestd_encode "$line[1,4096]"
        if (( $#REPLY > 7990 )); then
            REPLY=$REPLY[1,7990]
            if [[ $REPLY[-1] == % ]]; then REPLY=$REPLY[1,-2]; elif [[ $REPLY[-2] == % ]]; then REPLY=$REPLY[1,-3]; fi
        fi
        if (( __guestd_open )); then
            # The lists had been replaced: nobody has told the end of the last one.
            builtin print -rn -- $'\e]133;D;'$code$'\a' >/dev/tty
        fi
        __guestd_arrange
        __guestd_open=1
        builtin print -rn -- $'\e]133;C'${REPLY:+";cmdline_url=$REPLY"}$'\a' >/dev/tty
    } >/dev/null 2>&1
}

typeset -ga precmd_functions preexec_functions
__guestd_arrange
