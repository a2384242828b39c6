# Prints the newest Python of 3.12 or later that runs here, or nothing.
for version in 14 13 12; do
  for python in "python3.$version" "$HOME"/.pyenv/versions/3."$version".*/bin/python3; do
    if "$python" -c "import venv" >/dev/null 2>&1; then
      echo "$python"
      exit 0
    fi
  done
done
