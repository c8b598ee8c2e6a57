# Marks for bash 5.1 and later: where a prompt is (OSC 133 A, B), which command line begins (C) and how it has ended (D),
# and the directory (OSC 7).
#
# PROMPT_COMMAND is the one place where bash runs code between commands: the first in it tells the end, the last the
# prompt. PS1 ends with the prompt's end. PS0 is expanded when a line has been read and before it runs. Others write to all
# three at any time, whole or in part, so at each prompt what is missing is put back.
#
# The user's own are kept: traps, `$?`, PIPESTATUS and `$_` are as they would be; and while a command runs, so are the
# settings of the history. What runs at a prompt forks nothing. All of it is silent under set -x, and harmless under
# set -e and -u: the calls stand in groups that have no output, each on a line of its own, by which others' DEBUG traps
# know the commands of a prompt. Descriptor 9 is the terminal then.

__guestd_first=$'{\n__guestd_ended\n} 9>&2 >/dev/null 2>&1 && :'
__guestd_last=$'{\n__guestd_prompt\n} 9>&2 >/dev/null 2>&1 && :'
# Far behind everything that is counted from 0.
__guestd_last_index=1000000

__guestd_nil=
# How many commands have begun since the last prompt: of lines that are pasted together, each.
__guestd_open=0
# The number in the history that the next line will have.
__guestd_number=0
# HISTCONTROL and HISTIGNORE as the user has them, while they are put aside.
__guestd_control=
__guestd_ignore=
# The directory as it was told last: itself, and encoded.
__guestd_directory=
__guestd_place=

__guestd_PS1_end='\[\e]133;B\a\]'
# PS0 only expands. But an expansion can assign, and what is cut off its own beginning leaves nothing to be shown.
__guestd_PS0_plain='\e]133;C\a'
__guestd_PS0='${__guestd_nil:$((__guestd_open+=1)):0}'
__guestd_PS0+='${__guestd_control:+${__guestd_control#"${HISTCONTROL:=$__guestd_control}"}}'
__guestd_PS0+='${__guestd_ignore:+${__guestd_ignore#"${HISTIGNORE:=$__guestd_ignore}"}}'
# A list of prompt commands that was replaced as a whole has lost ours.
__guestd_PS0+='${__guestd_last:+${__guestd_last#"${PROMPT_COMMAND[__guestd_last_index]:=$__guestd_last}"}}'
__guestd_PS0+='$({ __guestd_tell; } 9>&1 >/dev/null 2>&1)'
__guestd_PS0+='${__guestd_nil:$((__guestd_number=HISTCMD)):0}'

# Percent-encodes $1, of which nothing but the bytes of $2 and the harmless are left, into REPLY. One step for each
# different byte, not for each.
__guestd_encode() {
    local LC_ALL=C text=${1//%/%25} rest hex byte
    rest=${text//[A-Za-z0-9%._~+,:@=$2-]/}
    while [[ $rest ]]; do
        byte=${rest:0:1}
        builtin printf -v hex %d "'$byte"
        builtin printf -v hex %%%02X "$((hex & 255))"
        text=${text//"$byte"/$hex}
        rest=${rest//"$byte"/}
    done
    REPLY=$text
}

# ------------------------------------------------------------------------------------------------- at a prompt

# The first at a prompt: the end of what ran.
__guestd_ended() {
    local status=$?
    local -
    set +exu
    # Inside something else `$?` may be another's. The last at the prompt has it, too.
    [[ ${PROMPT_COMMAND[0]-} == "$__guestd_first"* ]] || return "$status"
    __guestd_put_back
    __guestd_end "$status"
    __guestd_arrange
    return "$status"
}

# The last at a prompt, when all others have had their say about PS1.
__guestd_prompt() {
    local status=$?
    local -
    set +exu
    __guestd_put_back
    __guestd_end "$status"
    if [[ $PWD != "$__guestd_directory" ]]; then
        local REPLY
        __guestd_directory=$PWD
        __guestd_encode "$HOSTNAME"
        __guestd_place=$REPLY
        __guestd_encode "$PWD" /
        __guestd_place+=$REPLY
    fi
    builtin printf '\e]7;file://%s\a\e]133;A\a' "$__guestd_place" >&9
    __guestd_decorate
    __guestd_put_aside
    __guestd_number=$HISTCMD
    return 0
}

__guestd_end() {
    # Without promptvars PS0 cannot say that something began: an end too many does no harm.
    if ((__guestd_open)) || ! shopt -q promptvars; then
        builtin printf '\e]133;D;%d\a' "$1" >&9
    fi
    __guestd_open=0
}

__guestd_decorate() {
    local begin=$__guestd_PS0
    shopt -q promptvars || begin=$__guestd_PS0_plain
    if [[ ${PS1-} && $PS1 != *"$__guestd_PS1_end" && ${PS1@a} != *r* ]]; then
        PS1=${PS1//"$__guestd_PS1_end"/}$__guestd_PS1_end
    fi
    if [[ ${PS0-} != *"$begin" && ${PS0@a} != *r* ]]; then
        PS0=${PS0-}
        PS0=${PS0//"$__guestd_PS0"/}
        PS0=${PS0//"$__guestd_PS0_plain"/}$begin
    fi
    if [[ ${PROMPT_COMMAND[0]-} != "$__guestd_first"* ]]; then
        local rest=${PROMPT_COMMAND[0]-}
        # Somebody has put a command before ours: a no-op in its place leaves theirs whole.
        rest=${rest//"$__guestd_first"/:}
        PROMPT_COMMAND[0]=$__guestd_first${rest:+$'\n'$rest}
    fi
}

# Ours is the last but for bash-preexec's, which takes whatever comes after it for a command of the user's. Called from the
# first: bash goes through the list as it stands, and may not lose the place where it is.
__guestd_arrange() {
    local -i at=$__guestd_last_index
    local -a others=() places=("${!PROMPT_COMMAND[@]}")
    local place final=
    if [[ ${PROMPT_COMMAND[at]-} == "$__guestd_last" ]]; then
        [[ ${places[-1]} == "$at" && ${PROMPT_COMMAND[places[-2]]} != __bp_interactive_mode ]] && return
        [[ ${places[-1]} == "$((at + 1))" && ${PROMPT_COMMAND[at + 1]} == __bp_interactive_mode ]] && return
    fi
    for place in "${places[@]:1}"; do
        case ${PROMPT_COMMAND[place]} in
            "$__guestd_last") ;;
            __bp_interactive_mode) final=__bp_interactive_mode ;;
            *) others+=("${PROMPT_COMMAND[place]}") ;;
        esac
        unset "PROMPT_COMMAND[place]"
    done
    PROMPT_COMMAND+=("${others[@]}")
    PROMPT_COMMAND[at]=$__guestd_last
    [[ $final ]] && PROMPT_COMMAND[at + 1]=$final
}

# ------------------------------------------------------------------------------------------------- the history
#
# The line that was read is in the history and nowhere else. So that it is there, what would keep it out is put aside at the
# prompt. PS0 puts it back before the line runs, and a line that does not belong into the history is taken out of it, also
# before it runs: bash saves its history when it ends, whatever it was doing.

__guestd_put_aside() {
    { [[ -o history ]] && shopt -q promptvars; } || return 0
    case :${HISTCONTROL-}: in
        # Only bash itself can erase. With this, a line that it leaves out, or had before, has no text in its mark.
        *:erasedups:*) ;;
        *:ignorespace:* | *:ignoreboth:*)
            __guestd_control=$HISTCONTROL
            HISTCONTROL=
            ;;
    esac
    if [[ ${HISTIGNORE-} ]]; then
        __guestd_ignore=$HISTIGNORE
        HISTIGNORE=
    fi
    # Nobody else sends this signal, and where it is not trapped it does nothing.
    [[ $__guestd_control$__guestd_ignore ]] && trap '{ __guestd_forget; } >/dev/null 2>&1 || :' URG
}

# PS0 has, when a command has run.
__guestd_put_back() {
    if ! ((__guestd_open)); then
        [[ ! $__guestd_control ]] || HISTCONTROL=$__guestd_control
        [[ ! $__guestd_ignore ]] || HISTIGNORE=$__guestd_ignore
    fi
    __guestd_control= __guestd_ignore=
}

__guestd_forget() {
    # Behind PS0 it is the number of the line after.
    builtin history -d "$((__guestd_number -= 1))"
}

# In PS0, and so in a process of its own: tells the line, on descriptor 9.
__guestd_tell() {
    local status=$?
    set +exu
    shopt -s extglob
    local entries line= previous head REPLY
    if [[ -o history ]]; then
        unset HISTTIMEFORMAT
        entries=$'\n'$(builtin history 2)
        builtin printf -v head '\n%5d  ' "$__guestd_number"
        if [[ $entries == *"$head"* ]]; then
            line=${entries#*"$head"}
            previous=${entries%%"$head"*}
            if __guestd_is_ignored "$line" "${previous#$'\n'*([ ])+([0-9])??}"; then
                builtin kill -URG "$$"
            fi
        elif [[ :${HISTCONTROL-}: == *:@(ignoredups|erasedups):* && $HISTCONTROL != *ignore@(space|both)* ]]; then
            # It was there already, and is the last one now.
            line=$'\n'$(builtin history 1)
            line=${line#$'\n'*([ ])+([0-9])??}
        fi
    fi
    if ((__guestd_open > 1)); then builtin printf '\e]133;D;%d\a' "$status" >&9; fi
    LC_ALL=C
    line=${line:0:4096}
    __guestd_encode "$line" /
    if ((${#REPLY} > 7990)); then
        REPLY=${REPLY:0:7990}
        case $REPLY in
            *%) REPLY=${REPLY%?} ;;
            *%?) REPLY=${REPLY%??} ;;
        esac
    fi
    builtin printf '\e]133;C%s\a' "${REPLY:+;cmdline_url=$REPLY}" >&9
}

# Would bash have kept the line $1, after $2, out of the history?
__guestd_is_ignored() {
    case :$__guestd_control: in
        *:ignorespace:* | *:ignoreboth:*) [[ $1 == ' '* ]] && return 0 ;;
    esac
    case :$__guestd_control: in
        *:ignoredups:* | *:ignoreboth:*) [[ $1 == "$2" ]] && return 0 ;;
    esac
    local IFS=: pattern
    set -f
    for pattern in $__guestd_ignore; do
        [[ $1 == ${pattern//&/"$2"} ]] && return 0
    done
    return 1
}

__guestd_install() {
    unset -f __guestd_install
    # Where others may not add to it there is no place for marks.
    [[ ${PROMPT_COMMAND@a} == *r* ]] && return 0
    PROMPT_COMMAND[__guestd_last_index]=$__guestd_last
    local -
    set +exu
    __guestd_decorate
    __guestd_arrange
}
