# Of a module's PTX, what makes its kernels known to the emulated driver, and whether their threads exchange anything.
function end() { if (name != "") printf "    emulated::add_kernel(\"%s\", %s, %s);\n", name, name, waits ? "true" : "false" }
/^\.visible \.entry/ { end(); name = $3; sub(/\(.*/, "", name); waits = 0 }
/bar\.|shfl\.|mma\.|ldmatrix|cp\.async/ { waits = 1 }
END { end() }
