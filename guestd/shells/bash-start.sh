# How an interactive bash reads its files, with a word in between.
#
# bash reads its files by itself, and nothing can be put between /etc/profile, which drops the container's PATH on many
# systems, and the user's own, which have the last word. But in posix mode it reads ENV alone. So it is started in posix
# mode with ENV naming this file, which leaves that mode, takes back all that came with it, and reads what bash would have
# read. Being a login shell does not depend on it.
#
# Nothing of this is left in the environment when the first of the files is read.

__guestd_folder=${ENV%/*}
__guestd_marks=${GUESTD_SHELL_MARKS-}
if [ -n "${GUESTD_SHELL_ENV+set}" ]; then export ENV="$GUESTD_SHELL_ENV"; else unset ENV; fi
unset GUESTD_SHELL_ENV GUESTD_SHELL_MARKS POSIXLY_CORRECT
# Something else that only has the name: it has read its files.
if [ -z "${BASH_VERSION-}" ]; then return; fi

set +o posix
shopt -u inherit_errexit 2>/dev/null
# Not where it came from the environment.
__guestd_file=~/.sh_history
if [[ ${HISTFILE-} == "$__guestd_file" && $(declare -p HISTFILE) != "declare -x"* ]]; then
    HISTFILE=~/.bash_history
fi

# Parsed before the user's files, so that none of their aliases gets into it. The marks need an array of prompt
# commands, which came with 5.1.
if [[ $__guestd_marks && ${BASH_VERSINFO[0]}${BASH_VERSINFO[1]} -ge 51 ]]; then
    . "$__guestd_folder/bash-marks.sh"
else
    __guestd_marks=
fi
. "$__guestd_folder/path.sh"
__guestd_choose() {
    for __guestd_file in "$@"; do
        if [[ -f $__guestd_file && -r $__guestd_file ]]; then return 0; fi
    done
    __guestd_file=/dev/null
}
__guestd_between() {
    __guestd_keep_path "$__guestd_path"
    __guestd_choose ~/.bash_profile ~/.bash_login ~/.profile
}
__guestd_finish() {
    unset -f __guestd_keep_path __guestd_choose __guestd_between __guestd_finish
    if [[ $__guestd_marks ]]; then __guestd_install; fi
    unset __guestd_path __guestd_folder __guestd_file __guestd_marks
}

# From here on a file may have set -e, -u or -x, an alias or a trap: there are only calls, and they are silent.
__guestd_path=$PATH
if shopt -q login_shell; then
    __guestd_choose /etc/profile
    . "$__guestd_file"
    { __guestd_between; } >/dev/null 2>&1
    . "$__guestd_file"
else
    __guestd_choose /etc/bash.bashrc
    . "$__guestd_file"
    { __guestd_choose ~/.bashrc; } >/dev/null 2>&1
    . "$__guestd_file"
fi
{ __guestd_finish; } >/dev/null 2>&1 || :
