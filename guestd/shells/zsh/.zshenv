# The first of a user's files that zsh reads: it was started with ZDOTDIR naming this folder. Puts the user's ZDOTDIR back
# and reads the user's own. Nothing of this is left in the environment when that is read.

typeset -g __guestd_folder=${${(%):-%x}:h:h}
typeset -g __guestd_marks=${GUESTD_SHELL_MARKS-}
if (( ${+GUESTD_SHELL_ZDOTDIR} )); then export ZDOTDIR=$GUESTD_SHELL_ZDOTDIR; else unset ZDOTDIR; fi
unset GUESTD_SHELL_ZDOTDIR GUESTD_SHELL_MARKS

# Parsed before the user's files, so that none of their aliases gets into it.
if [[ -n $__guestd_marks && -o interactive ]]; then . $__guestd_folder/zsh-marks.zsh; fi
. $__guestd_folder/path.sh
# A login shell comes back for .zprofile: in between, /etc/zprofile may read /etc/profile, which drops the container's PATH
# on many systems.
__guestd_zshenv_read() {
    if [[ -o login && -o rcs ]]; then
        typeset -g __guestd_path=$PATH __guestd_zdotdir=${ZDOTDIR-} __guestd_zdotdir_is=${(t)ZDOTDIR-}
        ZDOTDIR=$__guestd_folder/zsh
    else
        __guestd_done
    fi
}
__guestd_back_for_zprofile() {
    if [[ -n $__guestd_zdotdir_is ]]; then ZDOTDIR=$__guestd_zdotdir; else unset ZDOTDIR; fi
    __guestd_keep_path "$__guestd_path"
    __guestd_done
}
__guestd_done() {
    unfunction __guestd_keep_path __guestd_zshenv_read __guestd_back_for_zprofile __guestd_done
    unset __guestd_folder __guestd_marks __guestd_path __guestd_zdotdir __guestd_zdotdir_is
}

# The system's own file may have a place for the user's, where none is given; it has been read with one that was.
for __guestd_file in /etc/zsh/zshenv /etc/zshenv; do
    if (( ! ${+ZDOTDIR} )) && [[ -r $__guestd_file && $(<$__guestd_file) == *ZDOTDIR* ]]; then . $__guestd_file; fi
done
unset __guestd_file
# From here on a file may have set -e, -u or -x, an alias or a trap: there are only calls, and they are silent.
if [[ -r ${ZDOTDIR:-${HOME-}}/.zshenv ]]; then . "${ZDOTDIR:-${HOME-}}/.zshenv"; fi
{ __guestd_zshenv_read } >/dev/null 2>&1
