# Standfast from this checkout: pkgs.callPackage ./package.nix { }.
#
# The programs run a Python that has Standfast among its own packages, and ignore PYTHONPATH and the
# like (-I), so no wrapper by environment variables will do. `library` is what the wheel installs;
# `python3.withPackages` makes the interpreter; the programs here name that one.
{
  lib,
  fetchurl,
  coreutils,
  python3,
  runCommand,
  runtimeShell,
}:
let
  project = builtins.fromTOML (builtins.readFile ../pyproject.toml);
  inherit (project.project) version;
  wheel = project.tool.hatch.build.targets.wheel;
  python = python3.pkgs;

  # What the wheel is made of, by its own list; not what lies beside it in a checkout.
  source = lib.fileset.toSource {
    root = ../.;
    fileset = lib.fileset.unions (
      [
        ../LICENSE
        ../README.md
        ../pyproject.toml
        (lib.fileset.fileFilter (file: !file.hasExt "pyc") ../standfast)
      ]
      ++ map (path: ../. + "/${path}") (lib.attrNames (wheel.shared-data // wheel.shared-scripts))
    );
  };

  # nixpkgs has no python-consul2, and its python-nomad may be too old: the files that
  # requirements-runtime.lock pins, with the hashes from there (a test compares them).
  pinned =
    {
      pname,
      version,
      url,
      sha256,
      dependencies,
    }:
    python.buildPythonPackage {
      inherit pname version dependencies;
      format = "wheel";
      src = fetchurl {
        url = "https://files.pythonhosted.org/packages/${url}";
        inherit sha256;
      };
    };

  python-consul2 = pinned {
    pname = "python-consul2";
    version = "0.1.5";
    url = "ff/52/5230ba94ededbfafa9df95c19f1272cf03916b6d33fce341936e3c74dd86/python_consul2-0.1.5-py2.py3-none-any.whl";
    sha256 = "ff8c6642c5a8d5f13a072e90adbad44cde824fc46fb2ab76b40dd1c77d6c0c41";
    dependencies = [
      python.requests
      python.six
    ];
  };

  python-nomad = pinned {
    pname = "python-nomad";
    version = "2.1.0";
    url = "54/83/83c46ffdd9268b00739bf05022c973baf769e31aff5f285e25c654483e92/python_nomad-2.1.0-py3-none-any.whl";
    sha256 = "9c48a48d3b1774176a690493ad72d27a585714d0f2396752f9d1b6c7c1901458";
    dependencies = [ python.requests ];
  };

  library = python.toPythonModule (
    python.buildPythonApplication {
      pname = "standfast";
      inherit version;
      pyproject = true;
      src = source;
      # The exact version of the lock is for our own builds; any that knows PEP 639 will do.
      postPatch = ''
        sed -i 's/"hatchling==[0-9.]*"/"hatchling"/' pyproject.toml
      '';
      build-system = [ python.hatchling ];
      dependencies = [
        python.msgspec
        python.prometheus-client
        python-consul2
        python-nomad
        python.requests
        python.tqdm
        python.urllib3
        python.waitress
      ];
      # They are sh first, and are made ready below.
      dontWrapPythonPrograms = true;
      # Its tests need the checkout, root and real parts: make test.
      doCheck = false;
      pythonImportsCheck = [
        "standfast.cli.main"
        "consul"
        "nomad"
      ];
      meta = {
        inherit (project.project) description;
        license = lib.licenses.mit;
        platforms = lib.platforms.linux;
        mainProgram = "standfast";
      };
    }
  );

  interpreter = (python3.withPackages (_: [ library ])).interpreter;
in
runCommand "standfast-${version}"
  {
    inherit interpreter library;
    inherit (library) meta;
    sh = runtimeShell;
    readlink = "${coreutils}/bin/readlink";
    programs = lib.attrValues wheel.shared-scripts;
    passthru = { inherit library python-consul2 python-nomad; };
  }
  ''
    mkdir -p "$out/bin"
    for program in $programs; do
      # The first line, and the one that finds the interpreter; the handlers are found beside the
      # program that runs.
      sed -e "1s|.*|#!$sh|" \
        -e "s|^program=.*|program=\$($readlink -f \"\$0\") python=$interpreter|" \
        "$library/bin/$program" >"$out/bin/$program"
      grep -qF "python=$interpreter" "$out/bin/$program"
      chmod 755 "$out/bin/$program"
    done
    ln -s "$library/share" "$out/share"
    "$out/bin/standfast" --version
  ''
