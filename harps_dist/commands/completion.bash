_harps_dist() {
    local word="${COMP_WORDS[COMP_CWORD]}" command="${COMP_WORDS[1]}" words=""
    if [ "$COMP_CWORD" = 1 ]; then
        words="COMMANDS"
    elif [ "${word#-}" != "$word" ]; then
        words="$(harps-dist "$command" --help 2>/dev/null | grep -oE -- '--[a-z][a-z0-9.-]*' | sort -u)"
    elif [ "$COMP_CWORD" = 2 ] && { [ "$command" = train ] || [ "$command" = benchmark ]; }; then
        words="RECIPES"
    fi
    COMPREPLY=($(compgen -W "$words" -- "$word") $(compgen -f -- "$word"))
}
complete -o filenames -F _harps_dist harps-dist
