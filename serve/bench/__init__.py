"""Side-by-side measurements of the engine, behind `hubctl bench engine`; they run without Ray."""
