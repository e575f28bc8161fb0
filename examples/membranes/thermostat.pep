# A thermostat as a numerical P system: proportional and integral control of the temperature of a room.
# The room loses a tenth of its difference to the outside (5 degrees) each step and gains `heat`; membrane `control` sets
# the heat from the error and from `sum`, where membrane `memory` adds the errors up.
thermostat = {
    H = {room, control, memory};
    structure = [room [control [memory ]memory ]control ]room;
    room = {
        var = {temperature, heat};
        pr = {0.9 * temperature + 0.1 * 5 + heat -> 1|temperature};
        var0 = (5, 0);
    };
    control = {
        pr = {0.3 * (20 - temperature) + 0.05 * sum -> 1|heat};
    };
    memory = {
        var = {sum};
        pr = {sum + 20 - temperature -> 1|sum};
    };
}
